"""A real terminal for a test: tmux runs the program, keys are typed, the screen is read back."""

import io
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest


class Terminal:
    """One tmux server of its own, with one window. Use as a context manager."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 120, rows: int = 40, env: dict[str, str] | None = None
    ) -> None:
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed")
        self._socket = f"nebula-{uuid.uuid4().hex[:12]}"
        self._command = command
        self._size = (columns, rows)
        self._env = env or {}

    def __enter__(self) -> Self:
        settings = [f"{name}={value}" for name, value in {"COLORTERM": "truecolor", **self._env}.items()]
        columns, rows = self._size
        self._tmux(
            *("new-session", "-d", "-s", "t", "-x", str(columns), "-y", str(rows)), "env", *settings, *self._command
        )
        self._tmux("set-option", "-g", "remain-on-exit", "on")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True, timeout=60)

    def type(self, *keys: str) -> None:
        """Keys by tmux's names (`Enter`, `Right`, `C-p`) or single characters."""
        self._tmux("send-keys", "-t", "t", *keys)

    def write(self, text: str) -> None:
        """Literal text."""
        self._tmux("send-keys", "-t", "t", "-l", text)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", "t")

    def until(self, *words: str, seconds: float = 60.0, gone: bool = False) -> str:
        """The screen once all `words` stand on it (or, with `gone`, none does). Fails showing the last screen."""
        deadline = time.monotonic() + seconds
        screen = ""
        while time.monotonic() < deadline:
            screen = self.screen()
            if all((word in screen) != gone for word in words):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"{'still' if gone else 'no'} {words} within {seconds} s on:\n{screen}")

    def until_ended(self, seconds: float = 60.0) -> None:
        """Once the program has ended. tmux knows it before, and sometimes without, writing so on the screen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._tmux("list-panes", "-t", "t", "-F", "#{pane_dead}").strip() == "1":
                return
            time.sleep(0.05)
        raise AssertionError(f"still running after {seconds} s:\n{self.screen()}")

    def picture(self, path: Path) -> None:
        """The screen with its colours as SVG, for a person to look at."""
        from rich.console import Console
        from rich.text import Text

        columns, _ = self._size
        console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
        console.print(Text.from_ansi(self._tmux("capture-pane", "-e", "-p", "-t", "t")))
        console.save_svg(str(path), title="nebula")

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, "-f", "/dev/null", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        if done.returncode:
            raise AssertionError(f"tmux {arguments[0]}: {done.stderr}")
        return done.stdout
