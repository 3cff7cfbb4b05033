"""A client that vanishes in any phase (GOALS R14): when its engine is told, and whether the books are back at 0.

    python benchmarks/client_gone.py [--each 100]

Phases: in the head, in the body, in the waiting room, before the first token (stream and plain), between two tokens,
and while nothing more will come for long. Half of the clients close (FIN), half reset (RST). The engine is a process
of its own and notes when its connection ends; both clocks are the machine's monotonic one. Prints per phase the
quantiles from the client's end to the engine's, and what is open in the worker at the end.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.stage import Stage, chat, quantile, request, stage, until, until_answers
from nebula_core.records.deployment import Limits
from nebula_core.runtime.processes import free_port

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'
#: Requests that the engine runs at once: enough for every phase but the waiting one.
ROOM = 8


async def serve_engine(port: int, notes: Path) -> None:
    """What it does is said by the `user` of a body: `silent`, `tokens`, `stall`; each end goes into `notes`."""
    with notes.open("a", buffering=1) as out:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = ""
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    if not head.startswith(b"POST"):
                        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        continue
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    name = json.loads(await reader.readexactly(length))["user"]
                    out.write(json.dumps({"name": name, "began": time.monotonic()}) + "\n")
                    gone = asyncio.ensure_future(reader.read(1))
                    await _answer(name, writer, gone)
                    await gone
                    break
            out.write(json.dumps({"name": name, "ended": time.monotonic()}) + "\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
        async with server:
            await server.serve_forever()


async def _answer(name: str, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]") -> None:
    if name.startswith(("tokens", "stall")):
        writer.write(STREAM_HEAD)
        for number in range(10_000):
            writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
            await writer.drain()
            if name.startswith("stall") and number == 2:
                return
            await asyncio.wait({gone}, timeout=0.02)
            if gone.done():
                return


def leave(writer: asyncio.StreamWriter, *, reset: bool) -> float:
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
    return time.monotonic()


class Notes:
    """What the engine has noted so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        began: dict[str, float] = {}
        ended: dict[str, float] = {}
        for line in self._path.read_text().splitlines():
            note = json.loads(line)
            if "began" in note:
                began[note["name"]] = note["began"]
            elif note["name"]:
                ended[note["name"]] = note["ended"]
        return began, ended

    async def until(self, name: str, seconds: float = 5.0) -> None:
        async def noted() -> bool:
            return name in self.read()[0]

        await until(noted, seconds)


def body(name: str, *, stream: bool) -> bytes:
    return json.dumps(json.loads(chat(stream=stream)) | {"user": name}).encode()


async def one(made: Stage, notes: Notes, phase: str, number: int) -> tuple[str, float]:
    """One client that vanishes; its name and when."""
    name = f"{PHASES[phase]}-{phase}-{number}"
    wire = request(body(name, stream=phase != "plain"), made.token, made.port)
    reader, writer = await asyncio.open_connection(*made.address)
    match phase:
        case "head":
            writer.write(wire[:40])
            await writer.drain()
        case "body":
            writer.write(wire[:-10])
            await writer.drain()
        case "prefill" | "plain":
            writer.write(wire)
            await notes.until(name)
        case "tokens" | "stall":
            writer.write(wire)
            for _ in range(3):
                await reader.readuntil(b"\n\n")
        case "waiting":
            writer.write(wire)
            await until(lambda: _waits(made, 1))
    return name, leave(writer, reset=number % 2 == 1)


#: What the engine does in each phase.
PHASES = {
    "head": "silent",
    "body": "silent",
    "waiting": "silent",
    "prefill": "silent",
    "plain": "silent",
    "tokens": "tokens",
    "stall": "stall",
}


async def _waits(made: Stage, count: int) -> bool:
    return await made.figure("nebula_proxy_waiting") == count


async def waiting_phase(made: Stage, notes: Notes, each: int) -> dict[str, Any]:
    """The engine is full; those who wait leave, and never reach it."""
    held = [await asyncio.open_connection(*made.address) for _ in range(ROOM)]
    for number, (_, writer) in enumerate(held):
        writer.write(request(body(f"silent-held-{number}", stream=True), made.token, made.port))
        await notes.until(f"silent-held-{number}")
    seconds = []
    names = []
    for number in range(each):
        name, left = await one(made, notes, "waiting", number)
        names.append(name)
        await until(lambda: _waits(made, 0))
        seconds.append(time.monotonic() - left)
    for number, (_, writer) in enumerate(held):
        leave(writer, reset=bool(number % 2))
    reached = set(names) & set(notes.read()[0])
    return {**_quantiles(seconds), "reached_engine": len(reached)}


def _quantiles(seconds: list[float]) -> dict[str, Any]:
    return {
        "n": len(seconds),
        "p50_ms": round((quantile(seconds, 0.5) or 0) * 1000, 2),
        "p99_ms": round((quantile(seconds, 0.99) or 0) * 1000, 2),
        "max_ms": round(max(seconds, default=0.0) * 1000, 2),
    }


async def measure(each: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="nebula-gone-") as folder:
        path = Path(folder) / "notes"
        path.touch()
        notes = Notes(path)
        port = free_port()
        engine = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--engine", str(port), "--notes", str(path)
        )
        try:
            await until_answers(port, "/")
            limits = Limits(inflight=ROOM)
            async with stage([port], limits=limits, request_log="false", drain_seconds=0) as made:
                await asyncio.sleep(1.0)
                descriptors = made.descriptors()
                phases: dict[str, Any] = {}
                for phase in PHASES:
                    if phase == "waiting":
                        phases[phase] = await waiting_phase(made, notes, each)
                        continue
                    left = dict([await one(made, notes, phase, number) for number in range(each)])
                    await asyncio.sleep(1.5)
                    began, ended = notes.read()
                    if phase in {"head", "body"}:
                        phases[phase] = {"n": each, "reached_engine": len(left.keys() & began.keys())}
                    else:
                        told = [ended[name] - at for name, at in left.items() if name in ended]
                        phases[phase] = {**_quantiles(told), "never_told": len(left) - len(told)}
                await asyncio.sleep(2.0)
                after = {
                    "inflight": await made.figure("nebula_proxy_inflight"),
                    "waiting": await made.figure("nebula_proxy_waiting"),
                    "descriptors": [descriptors, made.descriptors()],
                    "answers": {
                        status: await made.figure("nebula_proxy_requests_total", status=status)
                        for status in ("200", "499", "429", "503", "502", "500")
                    },
                }
        finally:
            engine.kill()
            await engine.wait()
    return {"benchmark": "client_gone", "each": each, "phases": phases, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        asyncio.run(serve_engine(args.engine, args.notes))
        return
    figures = asyncio.run(measure(args.each))
    told = ", ".join(f"{phase} {found['max_ms']}" for phase, found in figures["phases"].items() if "max_ms" in found)
    missed = sum(found.get("never_told", 0) + found.get("reached_engine", 0) for found in figures["phases"].values())
    print(f"engine told at most after ms: {told}; {missed} missed; open afterwards: {figures['after']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
