"""A whole cluster for a test: `nebula up --no-ui` in a folder of its own, on free ports, gone afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.ports import free_port

READY_SECONDS = 180
#: It ends within 10 s (what does not end is ended after 8), and needs some more where others want the processor too.
STOP_SECONDS = 60


class Up:
    """A running `nebula up`; `ready` is its ready line.

    Unless it `looks`, it finds no engines of others: those of tests beside this one would stand in its lists, and be
    asked by it.
    """

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        ready_seconds: float = READY_SECONDS,
        looks: bool = False,
    ) -> None:
        self.data = data
        self.ready_seconds = ready_seconds
        self.flags = flags
        self.env = {} if looks else {"NEBULA_AGENT_DISCOVERY__ENABLED": "false"}
        self.env |= env or {}
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def start(self, ports: tuple[int, int] | None = None) -> "Up":
        port, control_port = ports or (free_port(), free_port())
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nebula_tui", "up", "--no-ui", "--data", str(self.data)),
                *("--port", str(port), "--control-port", str(control_port), *self.flags),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.env},
        )
        line = self._first_line()
        if not line:
            raise AssertionError(
                f"nebula up ended: {self.process.stderr.read() if self.process.stderr else ''}\n{self.logs()}"
            )
        self.ready = json.loads(line)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"nebula up did not stop within {STOP_SECONDS} s\n{self.logs()}") from None
        finally:
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe:
                    pipe.close()

    def api(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        headers = {"authorization": f"Bearer {self.ready['admin_key']}"}
        url = f"{self.ready['control_url']}/api/v1{path}"
        answer = httpx.request(method, url, json=body, params=params, headers=headers, timeout=60)
        assert answer.status_code < 400, answer.text
        return answer.json() if answer.content else None

    def replicas(self, model: str = "demo") -> list[dict[str, Any]]:
        return [row for row in self.api("GET", "/replicas")["items"] if row["deployment"] == model]

    def cli(self, *words: str) -> str:
        """What `nebula WORDS` says as this cluster's admin."""
        done = subprocess.run(
            [sys.executable, "-m", "nebula_tui", "--url", self.ready["control_url"], *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "NEBULA_KEY": self.ready["admin_key"]},
        )
        assert done.returncode == 0, f"nebula {' '.join(words)}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def logs(self) -> str:
        """The end of every log, of engines too, for the message of a failure; not what other tests' engines did."""
        parts = []
        for path in sorted([*self.data.glob("logs/*.log"), *self.data.glob("nodes/*/logs/*.log")]):
            lines = [line for line in path.read_text(errors="replace").splitlines() if '"found":' not in line]
            parts.append(f"--- {path.relative_to(self.data)}\n" + "\n".join(lines[-20:]))
        return "\n".join(parts)

    def processes(self) -> list[psutil.Process]:
        """Every living process that carries this cluster's mark, engines included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("NEBULA_UP") == str(self.data) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _first_line(self) -> str:
        import selectors

        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(self.ready_seconds):
                logs = self.logs()
                self.process.terminate()
                raise AssertionError(f"nebula up was not ready after {self.ready_seconds} s\n{logs}")
            return self.process.stdout.readline()


@contextmanager
def cluster(data: Path, *flags: str, env: dict[str, str] | None = None, looks: bool = False) -> Iterator[Up]:
    up = Up(data, *flags, env=env, looks=looks)
    try:
        yield up.start()
    finally:
        if up.process is not None:
            up.stop()


def eventually(ask: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true answer. Asks every 50 ms; fails naming the last answer."""
    deadline = time.monotonic() + seconds
    answer: Any = None
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s; last answer {answer!r}")
