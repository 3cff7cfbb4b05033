"""Screens 4 and 5: one engine, and what is open on every replica."""

from collections.abc import Callable

import pytest

from tests.tui.screens.stage import SIZES, on_stage, scene

Compare = Callable[..., bool]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("digit", ["4", "5"])
def test_look(snap_compare: Compare, digit: str, size: tuple[int, int]) -> None:
    app, play = scene(digit)
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_the_arrows_walk_over_the_replicas() -> None:
    async with on_stage() as played:
        await played.press("4")
        await played.sees("deepseek-v3.2 › r2")
        await played.press("right")
        await played.sees("deepseek-v3.2 › r3")
        await played.press("left", "left")
        await played.sees("deepseek-v3.2 › r1")


async def test_enter_on_a_replica_in_flight_opens_its_engine() -> None:
    async with on_stage() as played:
        await played.press("5", "down", "down", "enter")
        await played.sees("[4 Engine]", "deepseek-v3.2 › r1")
