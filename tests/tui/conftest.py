"""Screens in tests: goldens under the top-level `snapshots/`, no animation, no blinking cursor, a frozen clock."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.location import PyTestLocation

_ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent

# Read by Textual when it is imported, so set before any test module imports it.
os.environ["TEXTUAL_ANIMATIONS"] = "none"
os.environ["COLORTERM"] = "truecolor"
os.environ["TERM"] = "xterm-256color"
os.environ.pop("NO_COLOR", None)


def _golden_folder(_cls: type[SVGImageExtension], *, test_location: PyTestLocation) -> str:
    """`tests/tui/widgets/test_x.py` keeps its goldens in `snapshots/widgets/test_x/`."""
    below = Path(test_location.filepath).resolve().relative_to(_HERE).with_suffix("")
    return str(_ROOT / "snapshots" / below)


SVGImageExtension.dirname = classmethod(_golden_folder)  # type: ignore[assignment,method-assign]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times on a screen do not depend on where the test runs."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def frozen_now() -> float:
    """2026-09-25 14:22:07 UTC: the clock of every golden."""
    return 1_790_346_127.0
