"""Sweeping /dev/shm: only what nobody maps, only what was the engine's."""

import mmap
import os
from pathlib import Path

import pytest

from nebula_agent.adapters import shm

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")


#: Long ago: no agent of another test sweeps these away with its own engines, and no file of another test is swept here.
MADE_AT = 1e9 - 100 * os.getpid()


@pytest.fixture
def segment():
    made = []

    def make(prefix="psm_"):
        path = Path("/dev/shm") / f"{prefix}nebula{os.getpid()}{len(made)}"
        draft = path.with_name(f"draft.{path.name}")
        draft.write_bytes(b"\0" * 4096)
        os.utime(draft, (MADE_AT, MADE_AT))
        made.append(draft.rename(path))
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def test_known_and_unmapped_goes_mapped_stays(segment):
    left, used, stranger = segment(), segment("sem.mp-"), segment()
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert used in shm.mapped_by([os.getpid()])
        assert shm.sweep([left, used], made_between=None) == (left,)
    assert not left.exists()
    assert used.exists()
    assert stranger.exists()


def test_files_of_another_time_or_another_kind_stay(segment):
    mine, other_kind = segment(), segment("nebula_")
    assert mine not in shm.sweep([], made_between=(MADE_AT - 40, MADE_AT - 20))
    assert mine in shm.sweep([], made_between=(MADE_AT - 5, MADE_AT + 5))
    assert other_kind.exists()


def test_an_open_file_is_in_use_before_it_is_mapped(segment):
    path = segment()
    with path.open("rb"):
        assert shm.sweep([path], made_between=None) == ()
    assert shm.sweep([path], made_between=None) == (path,)
