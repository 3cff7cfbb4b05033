"""What the agent reads of a process for it, and no more than the process itself could."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nebula_agent.adapters.process_table import YOUNG_LOOKS, NewProcess, ProcessTable

NOBODY = 65534


@pytest.fixture
def place():
    """A folder everybody may look into, unlike pytest's own."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name, owner, mode in (("roots", 0, 0o600), ("open", 0, 0o644), ("own", NOBODY, 0o600)):
            file = Path(folder, name)
            file.write_text(f"sk-{name}\n")
            file.chmod(mode)
            os.chown(file, owner, owner)
        Path(folder, "link").symlink_to("roots")
        os.mkfifo(Path(folder, "pipe"))
        os.chown(Path(folder, "pipe"), NOBODY, NOBODY)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a process of another user")
def test_a_command_line_does_not_make_the_agent_read_what_its_process_may_not(place):
    """Anybody may write `--api-key-file` on a command line; what the agent reads there, it sends to that process."""
    table = ProcessTable()
    with subprocess.Popen(["sleep", "600"], user=NOBODY) as process:
        try:
            assert table.file_of(process.pid, str(place / "own")) == b"sk-own\n"
            for name in ("roots", "open", "link", "pipe", "none", f"../{place.name}/own"):
                assert table.file_of(process.pid, f"{place}/{name}") is None, name
            assert table.file_of(process.pid, "own") is None, "it does not say where that is"
        finally:
            process.kill()
    assert table.file_of(os.getpid(), str(place / "roots")) == b"sk-roots\n"
    assert table.file_of(os.getpid(), str(place / "link")) is None
    assert table.file_of(process.pid, str(place / "own")) is None, "it is gone"


def test_who_shares_the_agents_own_container_is_in_none(tmp_path):
    here, other = "a" * 64, "b" * 64
    for name, container in (("self", here), ("10", here), ("11", other), ("12", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup").write_text("0::/\n" if container is None else f"0::/docker/{container}\n")
    table = ProcessTable(tmp_path)
    assert [table.container(pid) for pid in (10, 11, 12, 13)] == [None, other, None, None]


def test_what_a_process_became_some_seconds_after_it_came_is_seen(tmp_path):
    """A container's first process is `runc init` until all is set up for it, which takes seconds on a busy machine."""
    line = tmp_path / "10" / "cmdline"
    line.parent.mkdir()
    line.write_bytes(b"runc\0init\0")
    table = ProcessTable(tmp_path)
    for _ in range(YOUNG_LOOKS - 1):
        assert table.new() == [NewProcess(10, ("runc", "init"))]
    line.write_bytes(b"vllm\0serve\0")
    assert table.new() == [NewProcess(10, ("vllm", "serve"))]
    assert table.new() == [], "from now on it is what it is"
    table.forget()
    assert table.new() == [NewProcess(10, ("vllm", "serve"))]
    assert table.new() == []
