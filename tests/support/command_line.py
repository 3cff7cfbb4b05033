"""The `nebula` command in the test's own process, against a Control API in the test's own loop."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nebula_core.records.access import Role
from nebula_tui.cli.main import run
from tests.support.control import RunningControl

#: Words of one command line, and `role`; exit code, stdout and stderr.
Nebula = Callable[..., Awaitable[tuple[int, str, str]]]


def command_line(
    control: RunningControl,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    default_role: Role,
) -> Nebula:
    monkeypatch.setenv("NEBULA_URL", control.url)
    monkeypatch.setenv("NO_COLOR", "1")

    async def call(*words: str, role: Role = default_role) -> tuple[int, str, str]:
        key = folder / role
        key.write_text(control.tokens[role])
        key.chmod(0o600)

        def work() -> int:
            try:
                run(["--key-file", str(key), *words])
            except SystemExit as ended:
                return int(ended.code or 0)
            return 0

        capsys.readouterr()
        with capture_logs():  # of the Control API, in this process: no words of the command, whenever they come
            code = await asyncio.to_thread(work)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
