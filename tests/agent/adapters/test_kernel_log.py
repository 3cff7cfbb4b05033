"""The kernel log as a file, as a journal that is followed, and where neither may be read."""

import asyncio
import stat

from nebula_agent.adapters.kernel_log import KernelLog
from tests.support.agent import eventually


def test_lines_come_once_and_in_order_wherever_a_read_ends(tmp_path):
    path = tmp_path / "kmsg"
    path.write_bytes(b"one\ntwo\nth")
    kernel = KernelLog(path)
    assert kernel.lines() == ["one", "two"]
    with path.open("ab") as log:
        log.write(b"ree\n\xff\n")
    assert kernel.lines() == ["three", "\ufffd"]
    assert kernel.lines() == []
    kernel.close()
    assert kernel.lines() == []


def test_what_may_not_be_read_gives_nothing_and_says_why(tmp_path):
    kernel = KernelLog(tmp_path / "none")
    assert "No such file" in kernel.unreadable
    assert kernel.lines() == []
    kernel.close()


async def test_the_journal_is_followed_where_the_log_is_closed(tmp_path):
    program = tmp_path / "journalctl"
    program.write_text('#!/bin/sh\necho "NVRM: $1"\nexec sleep 600\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kernel = KernelLog(tmp_path / "none", journal=str(program))
    assert kernel.unreadable is None

    async def said():
        return kernel.lines()

    assert await eventually(said, "its line comes") == ["NVRM: --dmesg"]
    kernel.close()


async def test_a_journal_that_ends_is_told(tmp_path):
    program = tmp_path / "journalctl"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kernel = KernelLog(tmp_path / "none", journal=str(program))

    async def ended():
        await asyncio.sleep(0)
        return kernel.lines() == [] and kernel.unreadable

    assert await eventually(ended, "its end is noticed") == "journalctl ended"
