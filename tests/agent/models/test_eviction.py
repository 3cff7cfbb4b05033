"""Room on a real folder: which models go for another one, and which stay whatever happens."""

import contextlib
import os

import pytest

from nebula_agent.adapters.cache_folder import CacheFolder
from nebula_agent.decisions.model_cache import PARTIAL_SECONDS, RESERVE_BYTES, CacheLimits, Disk
from tests.agent.models.conftest import ANY, fetched, keeping, source_of
from tests.support.hub import tensors

SIZE = 100_000
NAMES = ("a", "b", "c", "d")


def model(name):
    return source_of(f"team/{name}")


@contextlib.contextmanager
def locked_by_another(root, *names):
    """Another process is busy with these models."""
    other = CacheFolder(root, "boot")
    other.open()
    with contextlib.closing(other), contextlib.ExitStack() as locks:
        for name in names:
            locks.enter_context(other.locked(model(name).id))
        yield


@pytest.fixture(autouse=True)
def four_models(hub, monkeypatch, tmp_path):
    """Of about the same size; room is for three."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("nebula_agent.loops.model_keeper.TELL_SECONDS", 0.02)
    for seed, name in enumerate(NAMES):
        hub.files[f"team/{name}"] = {"model.safetensors": tensors(SIZE, seed)}


def used(root, name, seconds_ago, kind="models"):
    folder = root / kind / model(name).id
    at = folder.stat().st_mtime - seconds_ago
    os.utime(folder, (at, at))


async def three_are_here(root, hub):
    """`a` was used longest ago, `c` last."""
    async with keeping(root, hub) as keeper:
        for name in "abc":
            fetch, _ = await fetched(keeper, model(name))
            assert fetch.here, fetch.failed
    for name, ago in (("a", 300), ("b", 200), ("c", 100)):
        used(root, name, ago)


def here(keeper):
    return {each.source.removeprefix("team/") for each in keeper.entries if each.complete}


THREE = CacheLimits(max_bytes=int(3.5 * SIZE), high=1.0, low=1.0)


async def test_the_one_used_longest_ago_goes_for_a_new_one(tmp_path, hub):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    async with keeping(root, hub, limits=THREE) as keeper:
        await keeper.take(model("a"))  # it is used now: `b` is the next to go
        fetch, _ = await fetched(keeper, model("d"))
        assert fetch.here, fetch.failed
        assert here(keeper) == {"a", "c", "d"}
        assert list((root / ".trash").iterdir()) == []
        assert not (root / "models" / model("b").id).exists()


async def test_what_a_replica_holds_or_another_process_locks_stays_and_the_next_goes(tmp_path, hub):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    with locked_by_another(root, "b"):
        async with keeping(root, hub, limits=THREE, pins={model("a").id}) as keeper:
            fetch, _ = await fetched(keeper, model("d"))
            assert fetch.here, fetch.failed
            assert here(keeper) == {"a", "b", "d"}


async def test_nothing_goes_when_all_is_held_and_the_download_is_refused(tmp_path, hub):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    pins = {model(name).id for name in "abc"}
    async with keeping(root, hub, limits=THREE, pins=pins) as keeper:
        hub.asked.clear()
        fetch, _ = await fetched(keeper, model("d"))
        assert "disk full" in fetch.failed
        assert here(keeper) == {"a", "b", "c"}
        assert hub.asked == []
        assert await keeper.evict() == ()
        await keeper.iterate()
        assert here(keeper) == {"a", "b", "c"}


async def test_when_the_locked_ones_leave_no_room_it_is_refused_too(tmp_path, hub):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    with locked_by_another(root, "a", "b"):
        async with keeping(root, hub, limits=THREE, pins={model("c").id}) as keeper:
            hub.asked.clear()
            fetch, _ = await fetched(keeper, model("d"))
            assert "disk full" in fetch.failed
            assert hub.asked == []
            assert here(keeper) == {"a", "b", "c"}


@pytest.mark.parametrize(("free", "fits"), [(1.21, True), (1.19, False)])
async def test_a_download_begins_only_with_a_fifth_more_room_than_it_needs(tmp_path, hub, monkeypatch, free, fits):
    size = len(hub.files["team/d"]["model.safetensors"])
    room = int(size * free) + RESERVE_BYTES
    monkeypatch.setattr(CacheFolder, "disk", lambda _: Disk(room, 10**12))
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, model("d"))
        assert fetch.here == fits, fetch.failed
        assert fits == bool(hub.asked)


async def test_a_disk_above_the_high_watermark_is_brought_below_the_low_one(tmp_path, hub, monkeypatch):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    total = 10 * SIZE

    def disk(folder):
        return Disk(total // 20 + (3 - len(list((root / "models").iterdir()))) * SIZE, total)

    monkeypatch.setattr(CacheFolder, "disk", disk)
    async with keeping(root, hub, limits=CacheLimits(high=0.9, low=0.8)) as keeper:
        # 95 % full; two models bring it to 75 %.
        await keeper.iterate()
        assert here(keeper) == {"c"}
        await keeper.iterate()
        assert here(keeper) == {"c"}


async def test_a_locked_model_does_not_keep_a_full_disk_full(tmp_path, hub):
    root = tmp_path / "c"
    await three_are_here(root, hub)
    with locked_by_another(root, "a"):
        async with keeping(root, hub, limits=CacheLimits(max_bytes=int(2.5 * SIZE), high=1.0, low=1.0)) as keeper:
            await keeper.iterate()
            assert here(keeper) == {"a", "c"}


async def test_partials_expire_unless_somebody_holds_them(tmp_path, hub):
    root = tmp_path / "c"
    folder = CacheFolder(root, "boot")
    folder.open()
    with contextlib.closing(folder):
        for name in NAMES:
            with folder.filling(model(name).id):
                pass
        for name in "abc":
            used(root, name, PARTIAL_SECONDS + 10, "partial")
        used(root, "d", PARTIAL_SECONDS - 600, "partial")
        with folder.locked(model("b").id):
            async with keeping(root, hub, limits=ANY, pins={model("a").id}) as keeper:
                await keeper.iterate()
                left = {each.id for each in keeper.entries}
                assert left == {model(name).id for name in "abd"}
