"""Streams broken at random points in every way there is (GOALS R2, R3, R16, R21), through a real worker, engines killed meanwhile.

    python -m benchmarks.broken_streams [--broken 100000] [--seed 1] [--at-once 96] [--kill-every 2]

Engines (`breaking_engine.py`) break their streams off until so many are broken: those of clients that want no resume all,
of the others as many as the budget for resumes bears. Every few seconds one engine is killed with SIGKILL and started
again; some clients leave in mid-stream. Counted is how each stream ended as its client sees it: `whole` (text identical to
the uncut answer, `[DONE]`), `told` (an error event behind a true beginning), `refused` (an error instead of an answer); all
else is a failure and its bytes are shown. Afterwards nothing may be open in the worker that was not open before.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import msgspec
import psutil
import uvloop

from benchmarks.breaking_engine import STARTED, UNSTARTED, Tally
from benchmarks.stage import MODEL, ROOT, Stage, stage, until, until_answers
from nebula_core.records.deployment import Limits
from nebula_core.runtime.processes import free_port
from tests.support.token_engine import random_tokens

ENGINES = 6
#: Seconds that a stream may be silent here; 120 would make each of them wait as long.
GAP_SECONDS = 3
WHOLE, TOLD, REFUSED, LEFT = "whole", "told", "refused", "left"
_GOOD = frozenset({WHOLE, TOLD, REFUSED, LEFT})
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_decode = msgspec.json.decode


class Answer(asyncio.Protocol):
    """A client's connection: takes one answer after another."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._over: asyncio.Future[bytes] | None = None
        self._leave_after: int | None = None
        self.transport: asyncio.Transport | None = None
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.open = True

    def ask(self, data: bytes, leave_after: int | None = None) -> "asyncio.Future[bytes]":
        """The whole answer, head included; what there is when the connection closes, or after so many bytes."""
        self._buffer.clear()
        self._leave_after = leave_after
        self._over = asyncio.get_running_loop().create_future()
        assert self.transport is not None  # noqa: S101
        self.transport.write(data)
        return self._over

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._leave_after is not None and len(self._buffer) >= self._leave_after:
            self._end()
            return
        if self._buffer.endswith(b"0\r\n\r\n") and b"chunked" in self._buffer[:1000]:
            self._end()
        elif (at := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, at)
            if length is not None and len(self._buffer) >= at + 4 + int(length[1]):
                self._end()

    def connection_lost(self, _error: Exception | None) -> None:
        self.open = False
        self._end()

    def _end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(bytes(self._buffer))


def plain(raw: bytes) -> bytes | None:
    """A chunked body without its framing; None if it is not whole."""
    parts = []
    at = 0
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(raw[at:end], 16)
        if size == 0:
            return b"".join(parts) if raw[end:] == b"\r\n\r\n" else None
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 4 + size


def verdict(raw: bytes, whole: str) -> str:
    """How an answer ended; what is no good end says why."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return "nothing"
    if head[9:12] != b"200":
        error = _decode(body).get("error")
        return (
            f"{REFUSED} {head[9:12].decode()} {error.get('code', 'of the engine')}"
            if error
            else "refused without a reason"
        )
    stream = plain(body)
    if stream is None:
        return "framing cut"
    text = ""
    ended = ""
    for event in stream.split(b"\n\n"):
        if not event:
            continue
        if ended:
            return f"more after {ended}"
        if event == b"data: [DONE]":
            ended = WHOLE
        elif event.startswith(b"event: error\ndata: "):
            ended = TOLD if _decode(event[19:])["error"]["code"] else "error without a code"
        elif event.startswith(b"data: "):
            try:
                chunk = _decode(event[6:])
            except msgspec.DecodeError:
                return "torn event"
            if b'"token_ids":[' in event:
                return "token ids that nobody asked for"
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        elif b"<html>" not in event:  # an engine's garbage reaches the client as it is
            return "torn event"
    if ended == WHOLE and text != whole:
        return "another text"
    if ended == TOLD and not whole.startswith(text):
        return "told after another text"
    return ended or "silent end"


def why_told(raw: bytes) -> str:
    """The last words of an error event, without what differs from stream to stream."""
    message = _decode((plain(raw.partition(b"\r\n\r\n")[2]) or b"").rsplit(b"\ndata: ", 1)[1])["error"]["message"]
    return re.sub(r"\d+", "N", message)


class Run:
    """One run: what it counts."""

    def __init__(self, made: Stage, tally: Tally, seed: int) -> None:
        self.made = made
        self.tally = tally
        self.dice = random.Random(seed)
        self.ends: Counter[tuple[bool, str]] = Counter()
        self.bad: list[str] = []
        #: Why streams that might have been resumed were not.
        self.why_told: Counter[str] = Counter()
        self.started = 0
        self.kills = 0

    def wire(self, name: str, *, resumable: bool) -> bytes:
        body = json.dumps(
            {"model": MODEL, "messages": [], "user": name, "stream": True, "temperature": 0, "max_tokens": 100}
        ).encode()
        extra = "" if resumable else "x-nebula-no-resume: 1\r\n"
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: n\r\nauthorization: Bearer {self.made.token}\r\n{extra}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def streams(self, prefix: str, at_once: int, *, count: int | None = None, broken: int = 0) -> None:
        """So many, or as many as it takes until so many are broken."""
        first = self.started

        def more() -> bool:
            return self.started - first < count if count is not None else self.tally.read()["broken"] < broken

        async def client() -> None:
            loop = asyncio.get_running_loop()
            link: Answer | None = None
            while more():
                self.started += 1
                name = f"{prefix}{self.started}"
                resumable = self.dice.random() < 0.6
                leaves = self.dice.randrange(200, 3000) if prefix == "s" and self.dice.random() < 0.02 else None
                if link is None or not link.open:
                    _, link = await loop.create_connection(Answer, *self.made.address)
                try:
                    raw = await asyncio.wait_for(link.ask(self.wire(name, resumable=resumable), leaves), 60)
                except TimeoutError:
                    found, raw = "no end within 60 s", b""
                else:
                    if leaves is not None and len(raw) >= leaves:
                        found = LEFT
                    else:
                        found = verdict(raw, b"".join(random_tokens(name)).decode())
                if found == LEFT or found not in _GOOD:
                    assert link.transport is not None  # noqa: S101
                    link.transport.abort()
                    link.open = False
                self.ends[resumable, found] += 1
                if resumable and found == TOLD:
                    self.why_told[why_told(raw)] += 1
                if found.split(" ")[0] not in _GOOD and len(self.bad) < 20:
                    self.bad.append(f"{name} {'' if resumable else 'no resume '}{found}: {raw[-1500:]!r}")
            if link is not None and link.transport is not None:
                link.transport.close()

        await asyncio.gather(*(client() for _ in range(at_once)))


class Fleet:
    """The engines, each a process that may be killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.ports = [free_port() for _ in range(ENGINES)]
        self.tally = folder / "tally"
        self._seed = seed
        self._processes: list[asyncio.subprocess.Process] = []

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        values = {"port": self.ports[number], "number": number, "engines": ENGINES, "seed": self._seed}
        command = [sys.executable, "-m", "benchmarks.breaking_engine", "--tally", str(self.tally)]
        for name, value in values.items():
            command += [f"--{name}", str(value)]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL)
        await until_answers(self.ports[number], "/health")
        return process

    async def __aenter__(self) -> Self:
        self._processes = [await self._start(number) for number in range(ENGINES)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def keep_killing(self, run: Run, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            number = run.dice.randrange(ENGINES)
            self._processes[number].kill()
            await self._processes[number].wait()
            run.kills += 1
            self._processes[number] = await self._start(number)
            await run.made.started_anew(number)


def open_things(made: Stage) -> dict[str, int]:
    """What the worker has open; lines to the store are a pool of its own that grows with what is asked at once."""
    worker = psutil.Process(made.worker.pid)
    links = Counter(
        "listening"
        if not each.raddr
        else "clients"
        if each.laddr.port == made.port
        else "engines"
        if each.raddr.port in made.engines
        else "store"
        for each in worker.net_connections()
    )
    descriptors = worker.num_fds() - links.pop("store", 0)
    return {"descriptors": descriptors, "threads": worker.num_threads(), **dict(sorted(links.items()))}


async def at_rest(made: Stage, like: dict[str, int] | None = None) -> dict[str, int]:
    """What it has open once all requests have ended and the idle connections to engines are closed (after 4 s).

    `like` is what it had at rest before: a line to the store that is being opened is none that was left open.
    """
    found: dict[str, int] = {}

    async def idle() -> bool:
        nonlocal found
        inflight = await made.figure("nebula_proxy_inflight")
        found = open_things(made)
        return inflight == 0 and not found.keys() & {"engines", "clients"} and (like is None or found == like)

    with contextlib.suppress(TimeoutError):  # what is still open is shown
        await until(idle, 60)
    return found


@contextlib.asynccontextmanager
async def chaos(fleet: Fleet, run: Run, every: float) -> AsyncIterator[None]:
    task = asyncio.create_task(fleet.keep_killing(run, every))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def measure(args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as name:
        async with Fleet(Path(name), args.seed) as fleet:
            settings = {"limits__gap_seconds": GAP_SECONDS, "request_log": False, "log_level": "error"}
            async with stage(fleet.ports, limits=Limits(inflight=10_000), **settings) as made:
                run = Run(made, Tally(fleet.tally, ENGINES), args.seed)
                await run.streams("w", args.at_once, count=4 * args.at_once)
                before = await at_rest(made)
                rss_before = made.rss_bytes()
                asked_before = run.tally.read()["asked"]
                run.ends.clear()
                began, cpu = time.monotonic(), psutil.Process(made.worker.pid).cpu_times()
                async with chaos(fleet, run, args.kill_every):
                    await run.streams("s", args.at_once, broken=args.broken)
                seconds = time.monotonic() - began
                used = psutil.Process(made.worker.pid).cpu_times()
                # Engines that were killed may have left connections that nobody has looked at since.
                after = await at_rest(made, before)
                told = run.tally.read()
                retries = {
                    outcome: await made.figure("nebula_proxy_retries_total", outcome=outcome)
                    for outcome in ("resumed", "resume_failed", "served", "failed")
                }
                return report(args, run, told, asked_before, retries) | {
                    "before": before,
                    "after": after,
                    "rss_mb": [round(rss_before / 1e6, 1), round(made.rss_bytes() / 1e6, 1)],
                    "seconds": round(seconds),
                    "worker_cpu_seconds": round(used.user + used.system - cpu.user - cpu.system, 1),
                    "load_average": os.getloadavg()[0],
                }


def report(
    args: argparse.Namespace, run: Run, told: dict[str, int], asked_before: int, retries: dict[str, float]
) -> dict[str, object]:
    streams = sum(run.ends.values())
    ends: Counter[str] = Counter()
    for (_, how), count in run.ends.items():
        ends[how] += count
    bad = {how: count for how, count in ends.items() if how.split(" ")[0] not in _GOOD}
    resumes = retries["resumed"]
    # A request that was there when two engines seemed to die goes nowhere else, by design (`decisions/quarantine`).
    quarantined = sum(count for why, count in run.why_told.items() if "another engine died" in why)
    cut = resumes + run.ends[True, TOLD] - quarantined
    return {
        "benchmark": "broken_streams",
        "seed": args.seed,
        "streams": streams,
        "broken": told["broken"],
        "kills": run.kills,
        "ends": dict(ends),
        "bad": bad,
        "examples": run.bad,
        "ways": {way: told[way] for way in (*UNSTARTED, *STARTED)},
        "resumed": int(resumes),
        "not_resumed": run.ends[True, TOLD],
        "of_them_quarantined": quarantined,
        "resumed_share": round(resumes / cut, 4) if cut else None,
        "why_not_resumed": dict(run.why_told.most_common(12)),
        "retries": {how: int(count) for how, count in retries.items()},
        # A resume is no second run: what it asks for is what was not given yet.
        "attempts_per_request": round((told["asked"] - asked_before) / streams, 4),
        "with_resumes": round((told["asked"] - asked_before + told["continued"]) / streams, 4),
    }


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broken", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=96)
    parser.add_argument("--kill-every", type=float, default=2.0)
    return parser.parse_args(given)


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(arguments(*sys.argv[1:])))
    print(
        f"{found['streams']} streams, {found['broken']} broken, {found['kills']} engines killed, in {found['seconds']} s: "
        f"bad ends {found['bad'] or 0}; resumed {found['resumed_share']:.2%} of those that could be; "
        f"{found['attempts_per_request']} attempts per request; open before {found['before']}, after {found['after']}"
    )
    print(json.dumps(found))
    sys.exit(1 if found["bad"] or found["before"] != found["after"] else 0)


if __name__ == "__main__":
    main()
