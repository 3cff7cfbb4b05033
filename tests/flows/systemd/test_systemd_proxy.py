"""The proxy's units under a real systemd, with all their hardening, in front of an engine of the agent's unit."""

import asyncio
import json
import time

import pytest

from nebula_core.records.access import Role
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.replica import Phase
from nebula_core.security.credentials import mint_key
from tests.support import nspawn
from tests.support.agent import eventually

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]

MODEL = "served"
REPLICA = f"{MODEL}-r1"
PORT = 8081
#: About 10 s at a token every 32 ms: longer than a reload takes on an idle machine.
LONG = 300


class Front:
    """The proxy's units inside, and a client of theirs."""

    def __init__(self, node, token):
        self.node = node
        self.machine = node.machine
        self.token = token

    @property
    def pid(self):
        return int(self.machine.show("MainPID", nspawn.PROXY))

    async def active(self, *, other_than=0):
        async def look():
            state = await asyncio.to_thread(self.machine.show, "ActiveState", nspawn.PROXY)
            return state == "active" and self.pid not in {0, other_than}

        try:
            await eventually(look, "the proxy's unit is active", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.machine.journal(nspawn.PROXY)}") from None

    def configure(self, **changes):
        self.machine.configure(
            "proxy",
            {
                "host": "0.0.0.0",
                "port": PORT,
                "data_dir": "/var/lib/nebula",
                "sealing_key_file": "/etc/nebula/sealing.key",
                # Longer than any stream here takes on a busy machine: none is cut for it.
                "drain_seconds": 120.0,
                "store": self.node.settings["store"],
                "control": {"signing_key_file": "/etc/nebula/signing.key"},
                "request_log": False,
            }
            | changes,
        )

    async def ask(self, method, path, body=None):
        """The connection after the request is on its way; whoever asks closes it."""
        dialled = await asyncio.to_thread(self.machine.dial, PORT)
        reader, writer = await asyncio.open_connection(sock=dialled)
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: n1\r\nauthorization: Bearer {self.token}\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        return reader, writer

    async def answer(self, method, path, body=None):
        """Head and body of a whole answer."""
        reader, writer = await self.ask(method, path, body)
        try:
            async with asyncio.timeout(60):
                return (await reader.read()).decode()
        finally:
            writer.close()

    async def chat(self, tokens=4):
        return await self.answer("POST", "/v1/chat/completions", chat(tokens))

    async def serves(self):
        async def look():
            try:
                return (await self.chat()).startswith("HTTP/1.1 200")
            except OSError:
                return False

        try:
            await eventually(look, "a chat is answered", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.chat()}\n{self.machine.journal(nspawn.PROXY)}") from None


def chat(tokens, *, stream=False):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "count"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }


class LongStream:
    """A stream that is under way: it was seen to begin."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.first = b""

    @classmethod
    async def begin(cls, front, tokens=LONG):
        reader, writer = await front.ask("POST", "/v1/chat/completions", chat(tokens, stream=True))
        stream = cls(reader, writer)
        async with asyncio.timeout(60):
            stream.first = await reader.read(1000)
        assert stream.first.startswith(b"HTTP/1.1 200"), stream.first
        return stream

    async def rest(self):
        try:
            async with asyncio.timeout(120):
                return (await self.reader.read()).decode()
        finally:
            self.writer.close()


TOKEN, KEY = mint_key("client", Role.CLIENT, now=time.time(), created_by="test")


@pytest.fixture
async def front(node):
    made = Front(node, TOKEN)
    if not node.machine.exists("/etc/nebula/proxy.toml"):
        await _install(node, made)
    return made


async def _install(node, front):
    """An engine of the agent's unit that takes its time, and the files of a proxy."""
    machine, cluster = node.machine, node.cluster
    await cluster.store.put(ChangeKind.KEY, KEY.id, KEY)
    spec = DeploymentSpec(source="sim", engine="simulated", replicas=1, gpus=0)
    await cluster.store.put(ChangeKind.DEPLOYMENT, MODEL, Deployment(name=MODEL, generation=1, spec=spec))
    for name, pair in (("sealing", cluster.sealing), ("signing", cluster.signing)):
        private = cluster.directory / f"{name}.key"
        pair.save(private)
        machine.write(f"/etc/nebula/{name}.key", private.read_text(), mode=0o600)
        machine.run("chown", "nebula:", f"/etc/nebula/{name}.key")
    front.configure()
    machine.configure("agent", node.settings)
    machine.run("systemctl", "restart", nspawn.AGENT)
    await node.active()
    await cluster.place(cluster.placement(REPLICA, spec={"args": {"preset": "tiny", "speed": 0.1}}))
    await cluster.until(Phase.READY, REPLICA, seconds=60)


async def test_it_is_active_when_all_workers_serve_and_answers_through_an_engine(front):
    front.machine.run("systemctl", "start", nspawn.PROXY)
    # Type=notify: `start` returned because READY=1 came.
    assert front.machine.show("ActiveState", nspawn.PROXY) == "active"
    assert "1 worker(s)" in front.machine.show("StatusText", nspawn.PROXY)
    assert front.machine.run("stat", "-c", "%U %a", "/var/lib/nebula") == "nebula 700"
    await front.serves()
    assert "served" in await front.answer("GET", "/v1/models")
    said = front.machine.journal(nspawn.PROXY)
    assert "Traceback" not in said
    assert '"level": "error"' not in said


async def test_a_reload_takes_new_settings_and_cuts_no_stream(front):
    stream = await LongStream.begin(front)
    former = front.pid
    front.configure(require_auth=False)
    front.machine.run("systemctl", "reload", nspawn.PROXY)
    owner, front.token = front.token, "nbl_nobody_nothing"

    async def open_to_all():
        return (await front.answer("GET", "/v1/models")).startswith("HTTP/1.1 200")

    await eventually(open_to_all, "the new setting holds", 60)
    front.token = owner
    assert "data: [DONE]" in await stream.rest()
    assert front.pid == former
    assert front.machine.show("ActiveState", nspawn.PROXY) == "active"


async def test_settings_that_are_wrong_are_refused_by_reload_and_nothing_changes(front):
    front.configure(workers=0)
    said = front.machine.run("sh", "-c", f"systemctl reload {nspawn.PROXY} && echo taken || true")
    assert "taken" not in said
    await eventually(lambda: "workers" in front.machine.journal(nspawn.PROXY), "the journal says why")
    assert front.machine.show("ActiveState", nspawn.PROXY) == "active"
    assert (await front.chat()).startswith("HTTP/1.1 200")
    front.configure()


async def test_a_restart_with_the_socket_unit_refuses_no_connection(front):
    front.machine.run("systemctl", "stop", nspawn.PROXY)
    front.machine.run("systemctl", "start", nspawn.SOCKET)
    front.machine.run("systemctl", "start", nspawn.PROXY)
    await front.serves()
    former = front.pid
    ends = []
    over = asyncio.Event()

    async def client():
        while not over.is_set():
            ends.append((await front.chat()).partition("\r\n")[0])

    stream = await LongStream.begin(front, 60)
    clients = [asyncio.create_task(client()) for _ in range(2)]
    await asyncio.to_thread(front.machine.run, "systemctl", "restart", nspawn.PROXY)
    await front.active(other_than=former)
    await front.serves()
    over.set()
    await asyncio.gather(*clients)
    # Whoever came while no worker was there waited in the socket that systemd holds.
    assert "data: [DONE]" in await stream.rest()
    assert set(ends) == {"HTTP/1.1 200 OK"}, ends


async def test_a_supervisor_that_stands_still_is_ended_by_the_watchdog(front):
    front.machine.watch_closely(nspawn.PROXY)
    front.machine.run("systemctl", "restart", nspawn.PROXY)
    await front.active()
    restarts, former = int(front.machine.show("NRestarts", nspawn.PROXY)), front.pid
    assert former > 0  # 0 would be everybody in the group of this very test
    front.machine.run("kill", "-STOP", str(former))
    await front.active(other_than=former)
    assert int(front.machine.show("NRestarts", nspawn.PROXY)) > restarts
    await eventually(
        lambda: "watchdog" in front.machine.journal(nspawn.PROXY, "-n", "all").lower(), "the journal says so"
    )
    await front.serves()
    front.machine.run("systemctl", "stop", nspawn.PROXY, nspawn.SOCKET)
    left = front.machine.run("sh", "-c", "pgrep -f [n]ebula_proxy || true")
    assert left == ""
