"""Threads for disks: in order within a lane, one hanging call holds up nobody else, and nothing is asked twice of a silent disk."""

import asyncio
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_agent.adapters import disk_threads
from nebula_agent.adapters.disk_threads import DiskSilent, DiskThreads

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def hang():
    """A call that returns once it is told to."""
    event = threading.Event()
    yield event
    event.set()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_in_a_lane_everything_is_done_in_order_whoever_was_cancelled(calls, threads):
    done: dict[str, list[int]] = {"a": [], "b": [], "c": []}

    async def main():
        disk = DiskThreads("test", threads)
        asked = [
            (asyncio.ensure_future(disk.do(lane, done[lane].append, number)), cancelled)
            for number, (lane, cancelled) in enumerate(calls)
        ]
        await asyncio.sleep(0)
        for task, cancelled in asked:
            if cancelled:
                task.cancel()
        await asyncio.gather(*(task for task, _ in asked), return_exceptions=True)
        await asyncio.gather(*(disk.do(lane, int) for lane in "abc"))

    asyncio.run(main())
    for lane, seen in done.items():
        assert seen == [number for number, (where, _) in enumerate(calls) if where == lane]


async def test_what_hangs_holds_up_its_lane_and_no_other(hang):
    disk = DiskThreads("test")
    held = asyncio.ensure_future(disk.do("a", hang.wait))
    behind = asyncio.ensure_future(disk.do("a", int))
    assert await disk.do("b", lambda: 7) == 7
    assert not held.done()
    assert not behind.done()
    assert disk.waiting_seconds() > 0
    hang.set()
    assert await held
    assert await behind == 0
    assert disk.waiting_seconds() == 0


async def test_what_a_call_raises_is_raised_where_it_was_asked():
    with pytest.raises(FileNotFoundError):
        await DiskThreads("test").do("a", open, "/none/at/all")
    with pytest.raises(FileNotFoundError):
        await DiskThreads("test").look(5.0, open, "/none/at/all")


async def test_a_silent_disk_is_asked_once_and_everybody_hears_its_answer(hang):
    disk, asked = DiskThreads("test"), []

    def look(path):
        asked.append(path)
        hang.wait()
        return path

    with pytest.raises(DiskSilent, match=r"0\.1 s"):
        await disk.look(0.1, look, "/mnt/a")
    for _ in range(5):
        with pytest.raises(DiskSilent):
            await disk.look(0.1, look, "/mnt/a")
    assert asked == ["/mnt/a"]
    waiting = asyncio.ensure_future(disk.look(20.0, look, "/mnt/a"))
    await asyncio.sleep(0)
    hang.set()
    assert await waiting == "/mnt/a"
    assert await disk.look(5.0, look, "/mnt/a") == "/mnt/a"
    assert len(asked) == 2


async def test_threads_are_few_and_go_when_there_is_nothing_to_do(hang, monkeypatch):
    monkeypatch.setattr(disk_threads, "IDLE_SECONDS", 0.05)
    disk = DiskThreads("few", 3)

    def mine():
        return [thread for thread in threading.enumerate() if thread.name == "disk-few"]

    asked = [asyncio.ensure_future(disk.do(str(number), hang.wait)) for number in range(10)]
    await asyncio.sleep(0)
    assert len(mine()) == 3
    hang.set()
    assert await asyncio.gather(*asked) == [True] * 10
    for thread in mine():
        await asyncio.to_thread(thread.join, 10)
    assert not mine()


async def test_a_thread_that_waits_for_work_takes_what_comes_next(monkeypatch):
    monkeypatch.setattr(disk_threads, "IDLE_SECONDS", 60.0)
    disk = DiskThreads("one", 16)
    for _ in range(50):
        await disk.do("a", int)
        # It answers a moment before it waits again: what comes in between gets another one.
        while not disk._idle:
            await asyncio.sleep(0.001)
    threads = [thread for thread in threading.enumerate() if thread.name == "disk-one"]
    assert len(threads) == 1


def test_a_process_ends_whatever_hangs():
    code = (
        "import asyncio, threading\n"
        "from nebula_agent.adapters.disk_threads import DiskThreads\n"
        "async def main():\n"
        "    DiskThreads('test').begin('a', threading.Event().wait)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0
