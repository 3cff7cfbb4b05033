"""The log of a container has one writer at a time, however fast they take over from each other and whatever the disk does."""

import asyncio
import os
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_agent.adapters.container_lines import ContainerLines

pytestmark = pytest.mark.timeout(120)

CONTAINER = "c" * 64
LINES = [f"line {number}\n".encode() for number in range(60)]


def stamp(number):
    """As Docker tells the time of a line: the first ones are of before the second, the others of after it."""
    at = datetime.fromtimestamp(1764057600 + (number + 999_999_970) // 10**9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{(number + 999_999_970) % 10**9:09}Z".encode()


class Container:
    """Stands for Docker: it has written all its lines, and answers those of a moment and after it."""

    def __init__(self):
        self.asked = []

    def follow_lines(self, container, keep, ended):
        assert container == CONTAINER
        loop = asyncio.get_running_loop()
        closed = threading.Event()

        class Stream:
            close = closed.set

        def read(since):
            self.asked.append(since)
            for number, text in enumerate(LINES):
                if since is None or stamp(number) >= as_stamp(since):
                    # Docker may have a line on its way when its stream is closed.
                    yield stamp(number), text
                    if closed.is_set() and number % 7 == 0:
                        return

        def work():
            keep(read)
            loop.call_soon_threadsafe(ended)

        threading.Thread(target=work, daemon=True).start()
        return Stream()


def as_stamp(since):
    seconds, _, nanos = since.partition(".")
    at = datetime.fromtimestamp(int(seconds), UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{nanos or '0':0<9}Z".encode()


def nothing():
    pass


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_who_takes_over_goes_on_where_the_former_one_ended(takeovers, earlier):
    """Closed and not awaited, at any moment; or killed between a line and the note of it."""

    async def main(folder):
        log = folder / "logs" / "chat-r1.log"
        before = b"of another container\n" if earlier else b""
        if earlier:
            log.parent.mkdir()
            log.write_bytes(before)
        engine, made = Container(), []
        for turns, killed in takeovers:
            lines = ContainerLines(CONTAINER, log)
            made.append(lines)
            lines.begin(engine, nothing)
            for _ in range(turns):
                await asyncio.sleep(0)
            lines.close()
            if killed:
                for one in made:
                    assert await one.over(50)
                with log.open("ab") as file:
                    file.write(b"written and not noted\n")
        last = ContainerLines(CONTAINER, log)
        last.begin(engine, nothing)
        for one in (*made, last):
            assert await one.over(50)
        assert log.read_bytes() == before + b"".join(LINES)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


async def test_while_the_disk_hangs_nobody_waits_and_the_next_one_writes_alone(tmp_path):
    """A pipe stands for the log: to open it takes until somebody reads."""
    log = tmp_path / "chat-r1.log"
    os.mkfifo(log)
    engine = Container()
    former, latter = (ContainerLines(CONTAINER, log) for _ in range(2))
    former.begin(engine, nothing)
    former.close()
    assert not await former.over(0.05)
    latter.begin(engine, nothing)
    assert not await latter.over(0.05)
    assert engine.asked == []
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert await former.over(50)
        assert await latter.over(50)
        assert os.read(reader, 1 << 16) == b"".join(LINES)
    finally:
        os.close(reader)


async def test_one_that_was_closed_follows_nothing_any_more(tmp_path):
    engine = Container()
    lines = ContainerLines(CONTAINER, tmp_path / "chat-r1.log")
    lines.close()
    lines.begin(engine, nothing)
    assert not lines.following
    assert engine.asked == []


async def test_a_file_that_takes_nothing_is_tried_again_with_the_next_look(tmp_path):
    """Not at once: an end is told of the container alone, or each look would begin the next one."""
    in_the_way = tmp_path / "logs"
    in_the_way.write_text("no folder")
    told = []
    engine = Container()
    lines = ContainerLines(CONTAINER, in_the_way / "chat-r1.log")
    lines.begin(engine, lambda: told.append("ended"))
    assert await lines.over(50)
    assert (told, engine.asked) == ([], [])
    in_the_way.unlink()
    lines.begin(engine, lambda: told.append("ended"))
    assert await lines.over(50)
    assert told == ["ended"]
    assert (in_the_way / "chat-r1.log").read_bytes() == b"".join(LINES)


async def test_a_log_that_grew_too_long_keeps_its_end_and_its_place(tmp_path):
    log = tmp_path / "chat-r1.log"
    engine = Container()
    lines = ContainerLines(CONTAINER, log, largest=200)
    lines.begin(engine, nothing)
    assert await lines.over(50)
    assert LINES[-1] in log.read_bytes()
    assert log.stat().st_size <= 200
    again = ContainerLines(CONTAINER, log)
    kept = log.read_bytes()
    again.begin(engine, nothing)
    assert await again.over(50)
    assert log.read_bytes() == kept
