"""Nothing that a stranger names or plants makes the cache touch anything outside its folder.

Beside the folder lies a canary: files, folders and links. After whatever is done it is the same to the byte, with the same
modes and times, and nobody has read it (its access times were set far back; a mount with `relatime` renews those on a read, one with
`noatime` tells nothing).
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_agent.adapters import cache_folder
from nebula_agent.adapters.cache_folder import CacheFolder, CacheLocked, CacheRefused
from nebula_agent.adapters.model_download import Transfer, download
from nebula_agent.adapters.model_place import FetchFailed
from nebula_agent.decisions.model_files import KeptFile, Listing, Manifest, RemoteFile, choose_files, why_bad_path
from nebula_agent.decisions.policy import LocalPolicy
from nebula_core.records.model_source import ENTRY_ID, ModelSource, read_source
from tests.agent.models.conftest import fetched, keeping, source_of
from tests.support.hub import tensors

pytestmark = pytest.mark.timeout(600)

SOURCE = source_of("team/small")
ID = SOURCE.id
OTHER = source_of("team/other").id
SECRET = b"nobody may read this"
PLAIN = b'{"pid": 1, "boot_id": "other", "began": 1}'
NAMES = ("config.json", "sub/model.safetensors")
#: What the cache says when it does not do a thing.
SAID = (CacheRefused, CacheLocked, FetchFailed, OSError)


class Canary:
    """A tree beside the cache: `base/cache` is the cache, all else of `base` is the canary."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "cache"
        self.tree = base / "beside"
        for name in ("models", "partial", "locks", ".trash", "sub", f"models/{ID}", f"partial/{ID}", f"{ID}/sub"):
            (self.tree / name).mkdir(parents=True, exist_ok=True)
        for name in ("secret", "config.json", f"{ID}/config.json", f"models/{ID}/config.json", "sub/model.safetensors"):
            (self.tree / name).write_bytes(SECRET)
            (self.tree / name).chmod(0o640)
        (self.tree / "link").symlink_to("secret")
        #: It has a second name inside the cache when one is planted: reading it there is no reading outside.
        self.twin = self.tree / "twin"
        self.twin.write_bytes(SECRET)
        self.twin.chmod(0o640)
        for path in self._every():
            os.utime(path, ns=(10**9, 10**18), follow_symlinks=False)
        self._before = self._look()

    def _every(self) -> list[Path]:
        return [self.tree, *sorted(self.tree.rglob("*"))]

    def _look(self) -> dict[str, tuple[object, ...]]:
        paths = self._every()
        seen = {path: path.lstat() for path in paths}
        # Listing the folders was a reading of ours.
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                os.utime(path, ns=(10**9, seen[path].st_mtime_ns))
        looked = {}
        for path, found in seen.items():
            read_at = found.st_atime_ns if stat.S_ISREG(found.st_mode) and path != self.twin else None
            looked[str(path)] = (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino, read_at)
        return looked

    def check(self) -> None:
        assert self._look() == self._before
        for path in self._every():
            if path.is_file():
                assert path.read_bytes() == SECRET
                if not path.is_symlink():
                    os.utime(path, ns=(10**9, path.stat().st_mtime_ns))
        assert {path.name for path in self.base.iterdir()} <= {"cache", "cache.moved", "beside"}


@contextmanager
def cached() -> Iterator[tuple[Canary, CacheFolder]]:
    with tempfile.TemporaryDirectory() as base:
        canary = Canary(Path(base).resolve())
        folder = CacheFolder(canary.root, "boot")
        folder.open()
        try:
            yield canary, folder
            canary.check()
        finally:
            folder.close()


def whole(folder: CacheFolder, entry_id: str) -> None:
    """A model as a download leaves it."""
    kept = []
    with folder.filling(entry_id) as here:
        for name in NAMES:
            with cache_folder.open_part(here, name) as fd:
                os.write(fd, b"good")
                digest = cache_folder.hash_file(fd).hexdigest()
            mtime = cache_folder.finish_part(here, name)
            kept.append(KeptFile(path=name, size=4, sha256=digest, mtime_ns=mtime))
    folder.complete(entry_id, Manifest(id=entry_id, source="team/small", files=tuple(kept)))


def test_the_canary_sings():
    """What is looked for is found: a write, a chmod, a new file, one that is gone."""
    for harm in (
        lambda tree: (tree / "secret").write_bytes(b"x"),
        lambda tree: (tree / "secret").chmod(0o644),
        lambda tree: (tree / "sub" / "new").touch(),
        lambda tree: (tree / "link").unlink(),
        lambda tree: (tree.parent / "new").touch(),
    ):
        with pytest.raises(AssertionError), cached() as (canary, _):
            harm(canary.tree)


# --- names

_WORDS = st.sampled_from(
    [
        *("..", ".", "", "a", "sub", "beside", "secret", "config.json", "model.safetensors", "cache", "\0", "a\0b"),
        *("x" * 255, "x" * 300, "x" * 5000, "é", "\ud800", "a\nb", "\\..\\", "C:", "~", "-rf", "*", "%2e%2e", ".part"),
        *(".nebula-manifest.json", "config.json.part", "a ", " a", ".trash", "models", "/dev/zero", ID, f"{ID}\n"),
    ]
)
_BASES = st.sampled_from(["", "/", "../../../beside/", "../../../../etc/", "./", "//", "sub/../../../"])
_PATHS = st.one_of(
    st.builds(lambda base, words: base + "/".join(words), _BASES, st.lists(_WORDS, min_size=1, max_size=9)), st.text()
)


@given(_PATHS)
@settings(max_examples=150, deadline=None)
def test_an_id_that_is_none_is_refused_by_every_call(name):
    if ENTRY_ID.fullmatch(name):
        return
    manifest = Manifest(id=name, source="x", files=(KeptFile(path="config.json", size=1, sha256="", mtime_ns=1),))
    with cached() as (canary, folder):
        absolute = f"{canary.tree}/{name}"
        for each in (name, f"../{name}", absolute, f"{ID}/{name}", f"{ID}\0{name}"):
            for call in (
                folder.manifest,
                lambda said: folder.manifest(said, "partial"),
                folder.path,
                lambda said: folder.facts(manifest.model_copy(update={"id": said})),
                lambda said: folder.read(said, "config.json", 100),
                lambda said: folder.sha256(said, "config.json"),
                folder.touch,
                lambda said: folder.filling(said).__enter__(),
                lambda said: folder.complete(said, manifest),
                lambda said: folder.demote(said, "config.json"),
                folder.remove,
                folder.drop_partial,
                lambda said: folder.locked(said).__enter__(),
                folder.holder,
            ):
                with pytest.raises(CacheRefused):
                    call(each)


@given(_PATHS)
@settings(max_examples=150, deadline=None)
def test_a_file_name_that_is_none_is_refused_by_every_call(name):
    with cached() as (canary, folder):
        whole(folder, ID)
        with folder.filling(ID) as here:
            for each in (name, f"../../../beside/{name}", f"{canary.tree}/{name}", f"sub/{name}"):
                calls = (
                    lambda said: cache_folder.open_part(here, said).__enter__(),
                    lambda said: cache_folder.finish_part(here, said),
                    lambda said: cache_folder.remove_file(here, said),
                    lambda said: cache_folder.file_facts(here, said),
                    lambda said: cache_folder.part_size(here, said),
                    lambda said: folder.read(ID, said, 100),
                    lambda said: folder.sha256(ID, said),
                )
                if why_bad_path(each) is not None:
                    for call in calls:
                        with pytest.raises(CacheRefused):
                            call(each)
                else:
                    assert folder.read(ID, each, 100) in {None, b"good"}
                    with suppress(*SAID), cache_folder.open_part(here, each) as fd:
                        os.write(fd, b"mine")
                    with suppress(*SAID):
                        cache_folder.finish_part(here, each)
                        assert cache_folder.file_facts(here, each)
                    cache_folder.remove_file(here, each)


@given(
    st.one_of(
        _PATHS,
        st.builds(
            lambda scheme, name, revision, pick: scheme + name + revision + pick,
            st.sampled_from(["", "modelscope:", "s3:", "s3://", "nfs+copy:", "nfs+copy:/"]),
            _PATHS,
            st.one_of(st.just(""), st.builds("@{}".format, _PATHS)),
            st.one_of(st.just(""), st.builds(":{}".format, _PATHS)),
        ),
    ),
    st.sampled_from(["vllm", "llamacpp"]),
)
@settings(max_examples=400, deadline=None)
def test_no_source_or_revision_becomes_a_path(text, engine):
    found = read_source(text, engine=engine)
    if isinstance(found, str):
        return
    assert ENTRY_ID.fullmatch(found.id)
    if found.kept:
        assert "\0" not in found.name
        assert CacheFolder(Path("/c"), "boot").path(found.id).parent == Path("/c/models")


def test_two_sources_never_share_an_entry():
    said = ["a/b", "a/b@c", "a/b:c", "b", "c/b", "modelscope:a/b", "s3:bucket/a/b", "nfs+copy:/a/b", "a/b@c:d"]
    sources = [source_of(text, engine="llamacpp") for text in said]
    sources += [
        source_of(text, code=code) for text in said if text[3:5] != ":c" and ":d" not in text for code in (False, True)
    ]
    assert len({source.id for source in sources}) == len(sources)


# --- things planted in the cache

_PLACES = st.sampled_from(
    [
        *(f"models/{ID}", f"models/{ID}/config.json", f"models/{ID}/sub", f"models/{ID}/sub/model.safetensors"),
        *(f"models/{ID}/.nebula-manifest.json", f"models/{ID}/more", f"partial/{ID}", f"partial/{ID}/config.json"),
        *(f"partial/{ID}/config.json.part", f"partial/{ID}/sub", f"partial/{ID}/sub/model.safetensors.part"),
        *(f"partial/{ID}/.nebula-manifest.json", f"locks/{ID}", "locks/.turn", ".trash/x", ".trash/y/z"),
        *(f"models/{OTHER}", f"partial/{OTHER}/a", "models/../stray"),
    ]
)
_PLANTS = st.sampled_from(["folder", "file", "nothing", "climbing", "twin", "fifo", "made", "plain"])


def plant(canary: Canary, place: str, what: str) -> None:
    path = canary.root / place
    with suppress(OSError):
        # A link planted before must not be gone through by the planting itself.
        if not path.parent.resolve().is_relative_to(canary.root):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.is_file() or path.is_fifo():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        match what:
            case "folder":
                path.symlink_to(canary.tree / place if (canary.tree / place).is_dir() else canary.tree)
            case "file":
                path.symlink_to(canary.tree / "secret")
            case "nothing":
                path.symlink_to(canary.tree / "made-through-a-link")
            case "climbing":
                path.symlink_to(os.path.relpath(canary.tree / "sub", path.parent))
            case "twin":
                path.hardlink_to(canary.twin)
            case "fifo":
                os.mkfifo(path)
            case "made":
                path.mkdir()
                (path / "link").symlink_to(canary.tree)
            case _:
                path.write_bytes(PLAIN)


def fill(folder: CacheFolder) -> None:
    with folder.filling(ID) as here:
        for name in NAMES:
            cache_folder.part_size(here, name)
            cache_folder.file_facts(here, name)
            with cache_folder.open_part(here, name) as fd:
                cache_folder.hash_file(fd)
                os.ftruncate(fd, 0)
                os.write(fd, b"mine")
            cache_folder.finish_part(here, name)
        folder.keep_listing(here, Manifest(id=ID, source="x"))


def look(folder: CacheFolder) -> None:
    folder.entries()
    folder.holder(ID)
    for kind in ("models", "partial"):
        manifest = folder.manifest(ID, kind)
        if manifest is not None:
            folder.facts(manifest)
    for name in NAMES:
        # The twin is a name of the cache's own.
        assert folder.read(ID, name, 100) in {None, b"good", b"mine", b"", SECRET, PLAIN}
        folder.sha256(ID, name)


class Served:
    """A place without a network."""

    def __init__(self, listing: Listing, content: bytes = b"mine") -> None:
        self._listing = listing
        self._content = content

    def listing(self) -> Listing:
        return self._listing

    @contextmanager
    def open(self, listing, file, offset):
        del listing, file

        class Body:
            starts_at = offset

            def __iter__(_self):  # noqa: N805 - the other self is the place
                yield self._content[offset:]

        yield Body()

    def close(self) -> None:
        """Nothing is held open."""


def fetch(folder: CacheFolder, listing: Listing | None = None, source: ModelSource = SOURCE) -> None:
    transfer = Transfer()
    transfer.roomy.set()
    listing = listing or Listing("c" * 40, tuple(RemoteFile(name, 4) for name in NAMES))
    download(source, lambda: Served(listing), folder, transfer)


ACTS = {
    "look": look,
    "fill": fill,
    "fetch": fetch,
    "whole": lambda folder: whole(folder, ID),
    "complete": lambda folder: folder.complete(ID, Manifest(id=ID, source="x")),
    "demote": lambda folder: folder.demote(ID, "sub/model.safetensors"),
    "remove": lambda folder: folder.remove(ID),
    "remove all": lambda folder: [folder.remove(each.id) for each in folder.entries()],
    "drop": lambda folder: folder.drop_partial(ID),
    "empty": lambda folder: folder.empty_trash(),
    "touch": lambda folder: folder.touch(ID),
    "now": lambda folder: folder.now(),
}


def swap(canary: Canary) -> None:
    """The cache's folder is moved away and a link to the canary stands in its place."""
    if not canary.root.is_symlink():
        canary.root.rename(canary.base / "cache.moved")
        canary.root.symlink_to(canary.tree)


_STEPS = st.lists(st.one_of(st.tuples(_PLACES, _PLANTS), st.sampled_from([*ACTS, "reopen"])), min_size=1, max_size=12)


@given(_STEPS, st.one_of(st.none(), st.integers(0, 12)))
@settings(max_examples=300, deadline=None)
def test_links_pipes_and_a_swapped_root_lead_nowhere(steps, swapped_at):
    with cached() as (canary, folder):
        whole(folder, ID)
        for at, step in enumerate(steps):
            if at == swapped_at:
                swap(canary)
            if isinstance(step, tuple):
                if not canary.root.is_symlink():
                    plant(canary, *step)
            elif step == "reopen":
                # A root that is a link when the agent starts is the operator's word; only a running cache is held to its folder.
                if not canary.root.is_symlink():
                    folder.close()
                    with suppress(*SAID):
                        folder.open()
                    if not folder.is_open:
                        break
            else:
                with suppress(*SAID):
                    ACTS[step](folder)
            canary.check()


@pytest.mark.parametrize("kind", ["models", "partial", "locks", ".trash"])
def test_a_cache_whose_own_folders_are_links_is_not_opened(tmp_path, kind):
    canary = Canary(tmp_path)
    canary.root.mkdir()
    (canary.root / kind).symlink_to(canary.tree)
    with pytest.raises(CacheRefused, match="something else is in its place"):
        CacheFolder(canary.root, "boot").open()
    canary.check()


@pytest.mark.parametrize("place", [f"models/{ID}", f"partial/{ID}", f"locks/{ID}", ".trash/x"])
@pytest.mark.parametrize("what", ["fifo", "folder", "file", "twin", "made"])
def test_what_is_planted_is_evicted_itself_and_holds_nobody_up(place, what):
    with cached() as (canary, folder):
        plant(canary, place, what)
        if place == f"locks/{ID}" and what == "made":
            with pytest.raises(OSError, match="directory"):
                folder.remove(ID)
            return
        folder.remove(ID)
        folder.empty_trash()
        assert not os.path.lexists(canary.root / place)


def test_a_manifest_of_another_model_speaks_for_none():
    with cached() as (canary, folder):
        whole(folder, ID)
        shutil.copytree(canary.root / "models" / ID, canary.root / "models" / OTHER)
        assert folder.manifest(OTHER) is None
        assert {each.id: each.complete for each in folder.entries()} == {ID: True, OTHER: False}


# --- what a hub may answer

_FILES = st.builds(
    RemoteFile,
    st.one_of(st.sampled_from(NAMES), _PATHS, st.builds("{}.safetensors".format, _PATHS)),
    st.sampled_from([None, 4, 0, 3, 5, -1, 10**30]),
    st.one_of(st.none(), _PATHS, st.just("0" * 64)),
    st.one_of(st.none(), _PATHS),
)


@given(st.lists(_FILES, max_size=6), st.one_of(st.none(), _PATHS), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_listing_leads_out_of_the_cache(files, revision, code):
    source = source_of("team/small", code=code)
    listing = Listing(revision, (RemoteFile("model.safetensors", 4), *files))
    with cached() as (canary, folder):
        with suppress(*SAID):
            fetch(folder, listing, source)
        chosen = choose_files(source, listing)
        if isinstance(chosen, str):
            assert len(chosen) < 2000
            chosen.encode()  # it is told in a report
            assert folder.entries() == ()
        for path in canary.root.rglob("*"):
            assert not path.is_symlink()
        for entry in folder.entries():
            assert entry.id == source.id
            folder.remove(entry.id)
        assert {path.parent.name for path in canary.root.rglob("*") if path.is_file()} <= {"locks"}


@pytest.mark.parametrize(
    "name",
    [
        "../../../beside/model.safetensors",
        "sub/../../../../beside/model.safetensors",
        "/etc/model.safetensors",
        "a\0b.safetensors",
        "x" * 300 + ".safetensors",
        "\ud800.safetensors",
        "a\n.safetensors",
        "a\\..\\b.safetensors",
    ],
)
@pytest.mark.parametrize("scheme", ["", "modelscope:"])
async def test_a_hub_that_lists_such_a_name_is_refused_in_words(tmp_path, hub, name, scheme, monkeypatch):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("nebula_agent.loops.model_keeper.TELL_SECONDS", 0.02)
    hub.files["team/evil"] = {"config.json": b"{}", name: tensors(100)}
    canary = Canary(tmp_path / "base")
    async with keeping(canary.root, hub, LocalPolicy(sources=("team/*", "modelscope:team/*"))) as keeper:
        fetch, _ = await fetched(keeper, source_of(f"{scheme}team/evil"))
        # A name that begins with a dot, or a folder of it, is hidden: it is not wanted in the first place.
        hidden = name.startswith(".") or "/." in name
        assert ("has no weights" if hidden else "is no plain file name") in fetch.failed
        assert hub.asked == []
        assert keeper.reported() == ()
        fetch.failed.encode()
    canary.check()
