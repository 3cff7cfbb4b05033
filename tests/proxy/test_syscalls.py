"""What a streamed chunk costs a real worker in calls to the kernel (GOALS S5c): noise-free, where timings are not."""

import asyncio
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from nebula_core.store.store import Store
from tests.proxy.test_process import answers
from tests.support.ports import free_port
from tests.support.proxy_process import proxy_process, write_cluster
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, chunked, event
from tests.support.token_engine import Emission, TokenEngine

CHUNKS = 300
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((\d+)<(\S*?)>[,)]")


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


def frames(body: dict[str, object]) -> list[bytes]:
    """A stream of one token each; with their ids where they were asked for, as vLLM sends them."""
    made = [Emission([1000 + number], f" t{number}") for number in range(CHUNKS)]
    return TokenEngine([]).frames(body, made, [1, 2, 3], chat=True)


@pytest.mark.flow
@pytest.mark.parametrize("resumable", [True, False])
async def test_one_read_and_one_write_per_chunk(
    store: Store, store_url: str, engine: ScriptedEngine, tmp_path: Path, resumable: bool
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace here: apt-get install strace")
    token = await write_cluster(store, [engine.port])
    more = asyncio.Semaphore(0)
    trace = tmp_path / "trace"
    async with proxy_process(store_url, tmp_path, free_port()) as proxy:
        await answers(proxy, token)

        async def script(conversation: Conversation) -> None:
            assert ("return_token_ids" in conversation.json) is resumable
            opening, *chunks = frames(conversation.json)
            await conversation.send(STREAM_HEAD + chunked(opening, chunks[0], end=False))
            for chunk in chunks[1:]:
                await more.acquire()
                await conversation.send(chunked(chunk, end=False))
            await more.acquire()
            await conversation.send(chunked(event("", finish="stop")))

        engine.script = script
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        body = b'{"model":"m","messages":[],"stream":true}'
        off = b"" if resumable else b"x-nebula-no-resume: 1\r\n"
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: n\r\nauthorization: Bearer %b\r\n%bcontent-length: %d\r\n\r\n"
        )
        writer.write(head % (token.encode(), off, len(body)) + body)
        await reader.readuntil(b" t0")
        workers = [psutil.Process(proxy.process.pid), *psutil.Process(proxy.process.pid).children(recursive=True)]
        pids = [word for worker in workers for word in ("-p", str(worker.pid))]
        tracer = await asyncio.create_subprocess_exec(
            "strace", "-f", "-yy", "-o", str(trace), *pids, stderr=asyncio.subprocess.PIPE
        )
        assert tracer.stderr is not None
        for _ in workers:
            attached = await tracer.stderr.readline()
            if b"attached" not in attached:
                await tracer.wait()
                pytest.skip(f"strace may not attach here: {attached.decode()}")
        began = time.monotonic()
        try:
            for number in range(1, CHUNKS):
                more.release()
                await reader.readuntil(b" t%d" % number)
        finally:
            seconds = time.monotonic() - began
            tracer.terminate()
            await tracer.wait()
        writer.close()
    counted: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        name, _, what = call.groups()
        if f"->127.0.0.1:{engine.port}" in what:
            counted["engine " + name] += 1
        elif f"127.0.0.1:{proxy.port}->" in what:
            counted["client " + name] += 1
        elif name.startswith("epoll"):
            counted[name] += 1
    sent = CHUNKS - 1
    report = dict(counted)
    of_engine = {name: count for name, count in counted.items() if name.startswith("engine ")}
    of_client = {name: count for name, count in counted.items() if name.startswith("client ")}
    assert sum(of_engine.values()) == sent, report
    assert sum(of_client.values()) == sent, report
    # The loop wakes for the store and the clock besides, some twenty times a second.
    assert counted["epoll_wait"] + counted["epoll_pwait"] <= sent * 1.1 + 20 + 60 * seconds, report
