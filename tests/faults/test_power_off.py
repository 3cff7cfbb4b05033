"""A machine is switched off (reliability 3, rows 9 and 41): nothing is refused, nothing is answered, from one moment to the next.

The engine lives in a network namespace of its own; its end of the cable is taken down. Needs the right to make namespaces.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvloop

from tests.contracts.data_plane.test_simulated import port_of, text_of
from tests.support.data_plane import MODEL, endpoint, model, running_plane, until
from tests.support.engine_process import EngineProcess, SimulatedEngine

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

PORT = 8000
FLAGS = ("--served-model-name", MODEL, "--preset", "tiny")


def pytest_asyncio_loop_factories() -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0


@dataclass
class Machine:
    """Another machine, as far as the network can tell."""

    name: str
    host: str

    def switch_off(self) -> None:
        assert ip("-n", self.name, "link", "set", f"{self.name}b", "down")


@pytest.fixture
def machine() -> Iterator[Machine]:
    number = os.getpid() % 16_000
    name, net = f"nb{number}", f"10.213.{number // 64}.{4 * (number % 64)}"
    ours, theirs = (f"{net.rsplit('.', 1)[0]}.{int(net.rsplit('.', 1)[1]) + place}" for place in (1, 2))
    if not ip("netns", "add", name):
        pytest.skip("no right to make network namespaces")
    try:
        made = (
            ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
            and ip("addr", "add", f"{ours}/30", "dev", f"{name}a")
            and ip("link", "set", f"{name}a", "up")
            and ip("-n", name, "addr", "add", f"{theirs}/30", "dev", f"{name}b")
            and ip("-n", name, "link", "set", f"{name}b", "up")
        )
        if not made:
            pytest.skip("no right to make network interfaces")
        yield Machine(name, theirs)
    finally:
        ip("link", "del", f"{name}a")
        ip("netns", "del", name)


class FarEngine(EngineProcess):
    """A simulated engine on another machine."""

    core_name = "SIM::EngineCore"

    def __init__(self, directory: Path, machine: Machine) -> None:
        self._machine = machine
        command = ["ip", "netns", "exec", machine.name, sys.executable, "-m", "nebula_agent.simulator"]
        super().__init__(directory, [*command, "--host", machine.host, "--port", str(PORT), *FLAGS])

    def _find_url(self) -> str:
        return f"http://{self._machine.host}:{PORT}"


async def test_what_runs_there_goes_on_elsewhere(machine: Machine, tmp_path: Path) -> None:
    def body(number: int) -> dict[str, object]:
        ask = {"role": "user", "content": f"Tell me of sea {number}."}
        return {
            "model": MODEL, "messages": [ask], "temperature": 0, "max_tokens": 1000, "ignore_eos": True, "stream": True,
        }  # fmt: skip

    with FarEngine(tmp_path, machine) as far, SimulatedEngine(tmp_path, *FLAGS) as near:
        views = model(
            endpoint("m-r0", PORT, host=machine.host, node="far", resume=True),
            endpoint("m-r1", port_of(near), resume=True),
        )
        async with running_plane(views) as running, running.client(limits=httpx.Limits(max_connections=50)) as client:
            # Connections that are kept to it are half open afterwards.
            await asyncio.gather(
                *(client.post("/v1/chat/completions", json=body(n) | {"max_tokens": 5}) for n in range(9))
            )
            streams = [asyncio.create_task(client.post("/v1/chat/completions", json=body(n))) for n in range(8)]
            await until(lambda: sum(running.plane.meters.of(MODEL).itl.counts) > 400, 60)
            assert running.plane.ledger.replicas["m-r0"] >= 3
            machine.switch_off()
            began = time.monotonic()
            plain = [
                asyncio.create_task(
                    client.post("/v1/chat/completions", json=body(n) | {"stream": False, "max_tokens": 5})
                )
                for n in range(100, 112)
            ]
            answers = await asyncio.gather(*plain)
            waited = time.monotonic() - began
            assert {answer.status_code for answer in answers} == {200}
            ended = await asyncio.gather(*streams)
            sys.stdout.write(
                f"new requests answered after {waited:.1f} s, streams after {time.monotonic() - began:.1f} s\n"
            )
            assert all(answer.content.endswith(b"data: [DONE]\n\n") for answer in ended)
            assert running.plane.meters.of(MODEL).retries["resumed"] >= 3
            async with httpx.AsyncClient(base_url=near.url, timeout=60) as direct:
                uncut = await asyncio.gather(*(direct.post("/v1/chat/completions", json=body(n)) for n in range(8)))
            assert [text_of(each.content) for each in ended] == [text_of(each.content) for each in uncut]
            assert len(running.plane.ledger) == 0
            # Out for longer, should it be asked again: nothing goes there while another one stands.
            assert "m-r0" in running.plane.ejections.reasons(time.monotonic())
        del far
