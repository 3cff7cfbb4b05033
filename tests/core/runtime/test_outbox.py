"""The outbox: all writes of a turn at its end, in order, whatever becomes of single transports."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.runtime.outbox import LARGE, MOST, Outbox


class Wire(asyncio.WriteTransport):
    """Notes what it is given, in a list that may be shared."""

    def __init__(self, name: str = "a", written: list[tuple[str, bytes]] | None = None) -> None:
        super().__init__()
        self.name = name
        self.written: list[tuple[str, bytes]] = [] if written is None else written
        self.closing = False
        self.broken = False

    def write(self, data: Any) -> None:
        if self.broken:
            raise RuntimeError("the wire is broken")
        self.written.append((self.name, data))

    def is_closing(self) -> bool:
        return self.closing


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(min_size=1, max_size=3)), max_size=3 * MOST))
def test_order_is_kept(writes: list[tuple[str, bytes]]) -> None:
    async def turn() -> None:
        outbox = Outbox()
        written: list[tuple[str, bytes]] = []
        wires = {name: Wire(name, written) for name in "abc"}
        for name, data in writes:
            outbox.write(wires[name], data)
        assert len(writes) - len(written) < MOST
        await asyncio.sleep(0)
        assert written == writes

    asyncio.run(turn())


async def test_nothing_is_written_before_the_turn_ends() -> None:
    outbox, wire = Outbox(), Wire()
    outbox.write(wire, b"1")
    assert wire.written == []
    await asyncio.sleep(0)
    assert wire.written == [("a", b"1")]
    outbox.write(wire, b"2")
    await asyncio.sleep(0)
    assert wire.written == [("a", b"1"), ("a", b"2")]


async def test_a_large_piece_does_not_wait_and_keeps_its_place() -> None:
    outbox, wire = Outbox(), Wire()
    outbox.write(wire, b"1")
    large = bytes(LARGE)
    outbox.write(wire, large)
    assert wire.written == [("a", b"1"), ("a", large)]
    outbox.write(wire, b"2")
    await asyncio.sleep(0)
    assert wire.written == [("a", b"1"), ("a", large), ("a", b"2")]


async def test_flush_writes_at_once_and_only_once() -> None:
    outbox, wire = Outbox(), Wire()
    outbox.write(wire, b"1")
    outbox.flush()
    outbox.flush()
    await asyncio.sleep(0)
    assert wire.written == [("a", b"1")]


async def test_what_was_closed_meanwhile_gets_nothing() -> None:
    outbox, gone, there = Outbox(), Wire(), Wire()
    outbox.write(gone, b"1")
    outbox.write(there, b"2")
    gone.closing = True
    outbox.flush()
    assert (gone.written, there.written) == ([], [("a", b"2")])


async def test_a_write_that_fails_is_told_and_loses_no_other() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    outbox, broken, there = Outbox(), Wire(), Wire()
    broken.broken = True
    outbox.write(broken, b"1")
    outbox.write(there, b"2")
    await asyncio.sleep(0)
    assert there.written == [("a", b"2")]
    assert [str(context["exception"]) for context in told] == ["the wire is broken"]


async def test_a_write_from_within_a_write_comes_after() -> None:
    outbox, there = Outbox(), Wire()

    class Answering(Wire):
        def write(self, data: Any) -> None:
            super().write(data)
            outbox.write(there, b"more")

    outbox.write(Answering(written=there.written), b"1")
    outbox.write(there, b"2")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [data for _, data in there.written] == [b"1", b"2", b"more"]


@pytest.mark.parametrize("count", [MOST - 1, MOST, MOST + 1])
async def test_no_more_than_so_many_wait(count: int) -> None:
    outbox, wire = Outbox(), Wire()
    for _ in range(count):
        outbox.write(wire, b"x")
    assert len(wire.written) == count // MOST * MOST
