"""Screen 4: one engine."""

from collections.abc import Callable

import pytest

from tests.tui.screens.stage import SIZES, on_stage, scene

Compare = Callable[..., bool]


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("4")
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_the_arrows_walk_over_the_replicas() -> None:
    async with on_stage() as played:
        await played.press("4")
        await played.sees("deepseek-v3.2 › r2")
        await played.press("right")
        await played.sees("deepseek-v3.2 › r3")
        await played.press("left", "left")
        await played.sees("deepseek-v3.2 › r1")
