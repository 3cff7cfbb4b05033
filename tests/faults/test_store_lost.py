"""The store loses its memory under a whole cluster: requests go on, engines stay, and an operator has it written anew (GOALS R9).

Real processes on a real store: proxies, control process, two agents, simulated engines. Traffic goes on all the time. Most of the
time is waited for leases and looks, so four clusters live through their losses at once, each with a store of its own.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.store import StoreServer, programs
from tests.support.up import Up, cluster, eventually

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

FLAGS = ("--nodes", "2", "--gpus", "2", "--replicas", "2")


Story = Callable[[Path, StoreServer], None]

_starting = threading.Lock()


@pytest.fixture
def at_once(own_store, tmp_path) -> Callable[..., None]:
    """Plays stories side by side; what fails in one of them does not hide what fails in another."""

    def play(**stories: Story) -> None:
        with ThreadPoolExecutor(len(stories)) as pool:
            playing = [pool.submit(story, tmp_path / name, own_store()) for name, story in stories.items()]
        failed = [error for one in playing if (error := one.exception()) is not None]
        if failed:
            raise BaseExceptionGroup("the store was lost", failed)

    return play


@contextmanager
def living(data: Path, server: StoreServer, *flags: str) -> Iterator[tuple[Up, "Traffic"]]:
    """A cluster under traffic. They are started one after another: each looks for free ports."""
    with ExitStack() as stack:
        with _starting:
            up = stack.enter_context(cluster(data, "--store", server.url, *flags))
        yield up, stack.enter_context(Traffic(up).going_on())


@pytest.fixture(params=["redis"])
def store_program(request) -> str:
    if request.param not in programs():
        pytest.skip("redis-server is not installed")
    return request.param


class Traffic:
    """One client that asks again and again; what it was answered, by status."""

    def __init__(self, up: Up) -> None:
        self.answers: dict[object, int] = {}
        self._up = up
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def _go_on(self) -> None:
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        headers = {"authorization": f"Bearer {self._up.ready['api_key']}"}
        with httpx.Client(base_url=self._up.ready["openai_base_url"], headers=headers, timeout=60) as client:
            while not self._over.is_set():
                try:
                    answer: object = client.post("/chat/completions", json=body).status_code
                except httpx.HTTPError as error:
                    answer = repr(error)
                self.answers[answer] = self.answers.get(answer, 0) + 1
                self._over.wait(0.01)

    def more(self, count: int = 20) -> None:
        """So many answers from now on."""
        seen = sum(self.answers.values())
        eventually(lambda: sum(self.answers.values()) >= seen + count, "traffic goes on")

    @contextmanager
    def going_on(self) -> Iterator["Traffic"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(60)


def engines(up: Up) -> dict[str, tuple[int, int]]:
    """Each replica's process and how often it was started again."""
    return {row["id"]: (row["pid"], row["restarts"]) for row in up.replicas() if row["phase"] == "ready"}


def untouched(up: Up, before: dict[str, tuple[int, int]]) -> None:
    """The same processes, started no other time; a control process that has just started hears of them one by one."""
    found = eventually(lambda: (seen := engines(up)).keys() >= before.keys() and seen, "all of them are reported")
    assert before.items() <= found.items()


def in_doubt(up: Up, doubt: str | None) -> dict[str, Any]:
    def said() -> dict[str, Any] | None:
        try:
            view: dict[str, Any] = up.api("GET", "/cluster")
        except (httpx.HTTPError, AssertionError):
            return None
        settled = view["store_reachable"] and view.get("store_doubt") == doubt
        return view if settled and (view.get("brake") is None) == (doubt is None) else None

    return eventually(said, f"the store is in doubt: {doubt}")


def adopted(up: Up) -> dict[str, Any]:
    """Looks at the plan until every node has shown what it holds, then has it written."""

    def whole() -> dict[str, Any] | None:
        plan: dict[str, Any] = up.api("POST", "/adopt/store", dry_run=1)
        odd = [note for note in plan.get("notes", ()) if not note["object"].startswith("deployment/")]
        whole = len(plan.get("replicas", ())) == 2 and not plan.get("silent_nodes")
        return plan if whole and not odd else None

    def written() -> dict[str, Any] | None:
        plan: dict[str, Any] = eventually(whole, "the plan has both replicas")
        assert plan["plan"].get("changes", []) == [], "adopting asks nothing of the engines"
        try:
            answer: dict[str, Any] = up.api("POST", "/adopt/store", {"shown": plan["digest"]})
        except AssertionError as error:
            if "not what was shown" in str(error):
                return None  # a node fell silent for a moment, say: it is looked at again
            raise
        assert not answer["dry_run"]
        return plan

    eventually(lambda: up.api("GET", "/leader")["here"], "the lease of one that died has ended")
    plan: dict[str, Any] = eventually(written, "what was shown is written")
    in_doubt(up, None)
    return plan


def refused(up: Up) -> str:
    answer = httpx.post(
        f"{up.ready['control_url']}/api/v1/deployments/demo/scale",
        json={"replicas": 1},
        headers={"authorization": f"Bearer {up.ready['admin_key']}"},
        timeout=60,
    )
    assert answer.status_code == 503, answer.text
    code: str = answer.json()["error"]["code"]
    return code


def scaled(up: Up, replicas: int) -> None:
    up.api("POST", "/deployments/demo/scale", {"replicas": replicas})
    eventually(lambda: len(engines(up)) == replicas, f"{replicas} run")


def restart_control(up: Up) -> None:
    """kill -9: what it remembered is gone."""
    pid = up.api("GET", "/cluster")["control_pid"]
    os.kill(pid, signal.SIGKILL)

    def another() -> bool:
        try:
            health = httpx.get(f"{up.ready['control_url']}/readyz", timeout=2)
        except httpx.HTTPError:
            return False
        return health.status_code == 200 and not psutil.pid_exists(pid)

    eventually(another, "another control process answers")


def test_what_was_lost_comes_back(at_once: Callable[..., None]) -> None:
    """Emptied or an older copy; with a control process that remembers, and with one that was killed."""
    at_once(
        emptied=emptied_under_traffic,
        emptied_and_forgotten=emptied_and_forgotten,
        older=back_as_an_older_copy,
        older_and_forgotten=partial(back_as_an_older_copy, forgetful=True),
    )


def emptied_under_traffic(data: Path, server: StoreServer) -> None:
    """Adopted and scaled, and written into the audit."""
    with living(data, server, *FLAGS) as (up, traffic):
        before = eventually(lambda: (found := engines(up)) and len(found) == 2 and found, "two run")
        up.api("POST", "/nodes/" + up.ready["nodes"][0] + "/cordon")
        traffic.more()
        server.command("FLUSHALL")
        view = in_doubt(up, "emptied")
        assert "adopt" in view["brake"]
        assert refused(up) == "store_emptied"
        traffic.more(50)
        untouched(up, before)
        plan = adopted(up)
        assert plan["base"] == "what this process remembers"
        assert {key["name"] for key in plan["keys"]} >= {"admin", "default"}
        assert plan["intents"] == [up.ready["nodes"][0]]
        untouched(up, before)
        scaled(up, 3)
        untouched(up, before)
        scaled(up, 1)
        traffic.more()
        calls = [(entry["call"], entry["stage"]) for entry in up.api("GET", "/audit")["items"]]
        assert ("POST /api/v1/adopt/store", "intent") in calls
        assert ("POST /api/v1/adopt/store", "result") in calls
    assert set(traffic.answers) == {200}, traffic.answers


def emptied_and_forgotten(data: Path, server: StoreServer) -> None:
    """What is left are the nodes, the workers' file on disk, and the key files of the operator."""
    with living(data, server, *FLAGS) as (up, traffic):
        before = eventually(lambda: (found := engines(up)) and len(found) == 2 and found, "two run")
        made = up.api("POST", "/keys", {"name": "of-a-client"})
        eventually(lambda: list(data.glob("**/routing-snapshot.jsonl")), "the workers keep what they route by")
        (kept,) = data.glob("**/routing-snapshot.jsonl")
        eventually(lambda: made["record"]["id"] in kept.read_text(), "with the new key")
        server.command("FLUSHALL")
        in_doubt(up, "emptied")
        server.command("DEL", "nebula:v1:access")
        restart_control(up)
        init(up, data, server)
        view = in_doubt(up, "emptied")
        assert view["brake"]
        assert refused(up) == "store_emptied"
        plan = adopted(up)
        assert plan["base"] == "the workers' routing snapshot on disk"
        assert "of-a-client" in {key["name"] for key in plan["keys"]}
        untouched(up, before)
        scaled(up, 3)
        untouched(up, before)
        traffic.more()
        with httpx.Client(headers={"authorization": f"Bearer {made['key']}"}, timeout=60) as other:
            assert other.get(up.ready["openai_base_url"] + "/models").status_code == 200
    assert set(traffic.answers) == {200}, traffic.answers


def init(up: Up, data: Path, server: StoreServer) -> None:
    """As the runbook says: the hashes of the operator's key files into the store."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "nebula_proxy", "init", "--data", str(data), "--store", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def back_as_an_older_copy(data: Path, server: StoreServer, *, forgetful: bool = False) -> None:
    """An RDB and AOF of before the last scaling come back: nobody obeys them, nothing is undone."""
    with living(data, server, "--nodes", "2", "--gpus", "2", "--replicas", "1") as (up, traffic):
        eventually(lambda: len(engines(up)) == 1, "one runs")
        copy = server.directory.with_name(f"{server.directory.name}-older")
        server.stop()
        shutil.copytree(server.directory / "appendonlydir", copy)
        server.start()
        in_doubt(up, None)
        eventually(lambda: tried_to_scale(up, 2), "the store takes writes again")
        before = eventually(lambda: (found := engines(up)) and len(found) == 2 and found, "two run")
        server.kill()
        shutil.rmtree(server.directory / "appendonlydir")
        shutil.copytree(copy, server.directory / "appendonlydir")
        server.start()
        if forgetful:
            restart_control(up)
        view = in_doubt(up, "stale")
        assert "older" in view["brake"]
        assert refused(up) == "store_stale"
        traffic.more(50)
        untouched(up, before)
        adopted(up)
        untouched(up, before)
        scaled(up, 3)
        untouched(up, before)
        traffic.more()
    assert set(traffic.answers) == {200}, traffic.answers


def tried_to_scale(up: Up, replicas: int) -> bool:
    try:
        up.api("POST", "/deployments/demo/scale", {"replicas": replicas})
    except (AssertionError, httpx.HTTPError):
        return False
    return True
