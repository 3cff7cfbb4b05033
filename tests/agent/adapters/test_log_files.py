"""Log files that somebody else writes: the end, what follows, and bounds."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.adapters.log_files import LONGEST_LINE, Follower, last_lines, shorten
from nebula_agent.adapters.node_files import former_log


def test_the_last_lines_of_this_start(tmp_path):
    path = tmp_path / "a.log"
    assert last_lines(path, 5) == []
    path.write_text("old 1\nold 2\n")
    offset = path.stat().st_size
    with path.open("a") as file:
        file.write("new 1\nnew 2\nnew 3\n")
    assert last_lines(path, 2, after=offset) == ["new 2", "new 3"]
    assert last_lines(path, 50, after=offset) == ["new 1", "new 2", "new 3"]
    # It was emptied since: the offset says nothing any more.
    path.write_text("x\n")
    assert last_lines(path, 50, after=offset) == ["x"]


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_following_in_pieces_is_reading_in_lines(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("follow") / "a.log"
    path.write_bytes(b"before\n")
    follower = Follower(path)
    follower.start(0)
    seen = []
    with path.open("ab") as file:
        for chunk in chunks:
            file.write(chunk)
            file.flush()
            seen += follower.poll(1 << 20).lines
        file.write(b"\n")
        file.flush()
    seen += follower.poll(1 << 20).lines
    whole = b"".join(chunks).decode("utf-8", "replace") + "\n"
    # Characters are decoded by line, so a sequence cut by a newline is replaced in both halves.
    expected = [line.decode("utf-8", "replace") for line in (b"".join(chunks) + b"\n").split(b"\n")[:-1]]
    assert seen == [line.rstrip("\r") for line in expected]
    assert "".join(whole.split("\n")).count("before") == "".join(seen).count("before")


def test_a_flood_is_cut_to_its_newest_lines_and_counted(tmp_path):
    path = tmp_path / "a.log"
    path.touch()
    follower = Follower(path)
    follower.start(0)
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    piece = follower.poll(100)
    assert piece.skipped_bytes == path.stat().st_size - 100
    assert piece.lines[-1] == "line 999"
    assert all(line.startswith("line ") for line in piece.lines)
    assert follower.poll(100).lines == []


def test_a_line_without_end_does_not_grow_without_bound(tmp_path):
    path = tmp_path / "a.log"
    path.touch()
    follower = Follower(path)
    follower.start(0)
    with path.open("ab") as file:
        file.write(b"x" * (3 * LONGEST_LINE))
    assert [len(line) for line in follower.poll(1 << 20).lines] == [LONGEST_LINE]


def test_a_file_that_is_too_large_is_emptied_under_its_writer_and_followed_on(tmp_path):
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as engine:
        engine.write(b"a" * 500 + b"\n")
        follower = Follower(path)
        follower.start(0)
        assert not shorten(path, largest=1000)
        engine.write(b"b" * 600 + b"\n")
        assert shorten(path, largest=1000)
        assert path.stat().st_size == 0
        assert former_log(path).stat().st_size == 1000
        engine.write(b"after\n")
        assert follower.poll(1 << 20).lines == ["after"]
