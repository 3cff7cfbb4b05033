"""Models fetched from a hub: whole, resumed, checked, refused with a reason, one download for all who wait."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys

import pytest

from nebula_agent.adapters import cache_folder
from nebula_agent.adapters.cache_folder import CacheFolder
from nebula_agent.decisions.model_cache import CacheLimits, Disk
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.loops.model_keeper import ModelNotHere
from tests.agent.models.conftest import fetched, keeping, source_of, tree
from tests.support.agent import eventually
from tests.support.hub import COMMIT, tensors

SMALL = "team/small"
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("nebula_agent.loops.model_keeper.TELL_SECONDS", 0.02)


async def test_a_model_comes_whole_and_without_what_runs_code(tmp_path, hub):
    source = source_of(SMALL)
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        path = await keeper.take(source)
        kept = tree(path)
        wanted = {
            name: body
            for name, body in hub.files[SMALL].items()
            if name not in {"pytorch_model.bin", "modeling.py", ".gitattributes"}
        }
        assert kept == wanted
        [model] = keeper.reported()
        assert (model.source, model.complete, model.revision) == (SMALL, True, COMMIT)
        assert model.size_bytes == sum(map(len, wanted.values()))
        assert model.files == len(wanted)
        assert keeper.fetches() == ()
        asked = len(hub.asked)
        again, _ = await fetched(keeper, source)
        assert again.here
        assert len(hub.asked) == asked


async def test_progress_is_told_while_it_runs(tmp_path, hub):
    hub.hold_after = 150_000
    async with keeping(tmp_path / "c", hub) as keeper:
        changed = asyncio.Event()
        fetch = keeper.want(source_of(SMALL), "test", changed.set)
        async with asyncio.timeout(60):
            while fetch.progress.done_bytes < 100_000:
                await changed.wait()
                changed.clear()
        [told] = keeper.fetches()
        assert told.total_bytes is not None
        assert 0 < told.done_bytes < told.total_bytes
        assert 0 < told.progress < 1
        assert "%" in told.message
        assert "KiB" in told.message or "MiB" in told.message
        hub.release.set()
        async with asyncio.timeout(60):
            while not fetch.over:
                await changed.wait()
                changed.clear()
        assert fetch.here
        keeper.let_go(fetch, "test")


async def test_a_token_goes_to_the_hub_and_never_to_where_it_redirects(tmp_path, hub, monkeypatch):
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert fetch.here, fetch.failed
    assert hub.tokens_at_cdn == [None, None]


@pytest.mark.parametrize("no_ranges", [False, True])
async def test_a_cut_connection_is_gone_on_with(tmp_path, hub, no_ranges):
    hub.no_ranges = no_ranges
    hub.cuts[WEIGHTS] = [100_000, 50_000]
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert fetch.here, fetch.failed
        path = await keeper.take(source_of(SMALL))
        assert (path / WEIGHTS).read_bytes() == hub.files[SMALL][WEIGHTS]
    ranges = [said for name, said in hub.asked if name == WEIGHTS]
    assert len(ranges) == 3
    assert ranges[0] is None
    assert ranges[1] is not None
    # What came before is not asked for again.
    assert len([name for name, _ in hub.asked if name == "config.json"]) == 1


KILLED = """
import asyncio, sys, pathlib, os
sys.path.insert(0, {root!r})
from tests.agent.models.conftest import keeping, source_of
from types import SimpleNamespace
async def main():
    hub = SimpleNamespace(env={{"HF_ENDPOINT": {url!r}}})
    async with keeping(pathlib.Path({cache!r}), hub) as keeper:
        fetch = keeper.want(source_of({model!r}), "x", lambda: None)
        await asyncio.sleep(300)
asyncio.run(main())
"""


async def test_after_kill_9_it_goes_on_where_it_stopped_and_takes_the_lock_over(tmp_path, hub):
    hub.hold_after = 150_000
    cache = tmp_path / "c"
    code = KILLED.format(root=os.getcwd(), url=hub.url, cache=str(cache), model=SMALL)  # noqa: PTH109 - as pytest runs
    child = subprocess.Popen([sys.executable, "-c", code])  # noqa: ASYNC220 - it is begun, not waited for
    try:
        assert await asyncio.to_thread(hub.held.wait, 60)
        part = cache / "partial" / source_of(SMALL).id / f"{WEIGHTS}.part"
        size = hub.hold_after
        await eventually(lambda: part.exists() and part.stat().st_size == size, "all that came is on the disk")
        # Another process waits for it as long as it lives.
        async with keeping(cache, hub) as keeper:
            changed = asyncio.Event()
            fetch = keeper.want(source_of(SMALL), "test", changed.set)
            await eventually(lambda: f"process {child.pid} is busy" in fetch.words, "a word on who fetches it")
            hub.hold_after = None
            child.send_signal(signal.SIGKILL)
            child.wait(60)
            await eventually(lambda: fetch.over, "the rest of it", 60)
            assert fetch.here, fetch.failed
            path = await keeper.take(source_of(SMALL))
            assert (path / WEIGHTS).read_bytes() == hub.files[SMALL][WEIGHTS]
            keeper.let_go(fetch, "test")
    finally:
        child.kill()
        child.wait(60)
    ranges = [said for name, said in hub.asked if name == WEIGHTS]
    assert ranges == [None, f"bytes={size}-"]
    assert len([name for name, _ in hub.asked if name == "config.json"]) == 1


async def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path, hub):
    hub.cuts[WEIGHTS] = [50_000] * 4
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert "peer closed connection" in fetch.failed
        hub.cuts.clear()
        hub.commit = "d" * 40
        hub.files[SMALL][WEIGHTS] = tensors(300_000, 9)
        hub.asked.clear()
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert fetch.here, fetch.failed
        assert (WEIGHTS, None) in hub.asked
        assert ("config.json", None) not in hub.asked
        path = await keeper.take(source_of(SMALL))
        assert (path / WEIGHTS).read_bytes() == hub.files[SMALL][WEIGHTS]
        assert keeper.reported()[0].revision == "d" * 40


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"files": {}}, "is not at"),
        ({"token": "x"}, "token"),
        ({"gated": True}, "gated"),
    ],
)
async def test_what_the_hub_refuses_is_named_and_not_tried_again(tmp_path, hub, broken, said):
    for name, value in broken.items():
        setattr(hub, name, value)
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, told = await fetched(keeper, source_of(SMALL))
        assert said in fetch.failed
        assert not any("try 1" in words for words in told)
        [failed] = keeper.fetches()
        assert failed.failed
        assert said in failed.message
        assert keeper.reported() == ()


async def test_an_unknown_revision_a_moving_hub_and_one_that_is_away(tmp_path, hub):
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(f"{SMALL}@v9"))
        assert "no revision v9" in fetch.failed
        hub.statuses[WEIGHTS] = [503, 429]
        fetch, told = await fetched(keeper, source_of(SMALL))
        assert fetch.here, fetch.failed
        assert any("503" in words for words in told)
    hub.url = "http://127.0.0.1:9"
    async with keeping(tmp_path / "d", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert "Connect" in fetch.failed


async def test_a_wrong_checksum_is_never_kept(tmp_path, hub):
    good = hub.files[SMALL][WEIGHTS]
    hub.wrong[WEIGHTS] = good[:-1] + bytes([good[-1] ^ 1])
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert "checksum" in fetch.failed
        assert not any(model.complete for model in keeper.reported())
        hub.wrong.clear()
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert fetch.here


async def test_one_download_for_all_who_wait_and_none_when_nobody_does(tmp_path, hub):
    hub.hold_after = 100_000
    async with keeping(tmp_path / "c", hub) as keeper:
        calls = [asyncio.Event(), asyncio.Event()]
        first = keeper.want(source_of(SMALL), "a", calls[0].set)
        assert keeper.want(source_of(SMALL), "b", calls[1].set) is first
        assert await asyncio.to_thread(hub.held.wait, 60)
        keeper.let_go(first, "a")
        assert first.task is not None
        assert not first.task.done()
        keeper.let_go(first, "b")
        await asyncio.wait({first.task}, timeout=60)
        assert first.task.cancelled()
        hub.hold_after = None
        hub.release.set()
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert fetch.here, fetch.failed
    assert [name for name, _ in hub.asked].count(WEIGHTS) == 2


async def test_no_more_downloads_at_once_than_allowed(tmp_path, hub):
    for name in "abc":
        hub.files[f"team/{name}"] = dict(hub.files[SMALL])
    hub.hold_after = 1000
    async with keeping(tmp_path / "c", hub, at_once=1) as keeper:
        fetches = [keeper.want(source_of(f"team/{name}"), "t", lambda: None) for name in "abc"]
        assert await asyncio.to_thread(hub.held.wait, 60)
        assert [fetch.note for fetch in fetches][1:] == ["waits for another download"] * 2
        hub.hold_after = None
        hub.release.set()
        await eventually(lambda: all(fetch.over for fetch in fetches), "all three")
        assert all(fetch.here for fetch in fetches)


async def test_a_disk_without_room_refuses_before_a_byte_is_written(tmp_path, hub):
    async with keeping(tmp_path / "c", hub, limits=CacheLimits(max_bytes=1000, high=1.0, low=1.0)) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert "disk full" in fetch.failed
        assert hub.asked == []
        assert keeper.reported() == ()


async def test_a_disk_that_fills_up_on_the_way_ends_it(tmp_path, hub, monkeypatch):
    hub.hold_after = 100_000
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch = keeper.want(source_of(SMALL), "t", lambda: None)
        assert await asyncio.to_thread(hub.held.wait, 60)
        monkeypatch.setattr(CacheFolder, "disk", lambda _: Disk(1000, 10**12))
        # The rest of it is only sent once this was seen: it would be here before the next look.
        await eventually(lambda: all(each._stop.is_set() for each in keeper._transfers), "the disk is looked at")
        hub.hold_after = None
        hub.release.set()
        await eventually(lambda: fetch.over, "an end")
        assert "disk full" in fetch.failed
        monkeypatch.undo()
        await keeper.look()
        assert keeper.reported() == ()


async def test_what_cannot_be_loaded_safely_is_refused(tmp_path, hub):
    hub.files["team/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x" * 100}
    hub.files["team/coded"] = {
        "config.json": b'{"auto_map": {"AutoModel": "modeling.X"}}',
        "model.safetensors": tensors(100),
        "modeling.py": b"x=1",
    }
    async with keeping(tmp_path / "c", hub) as keeper:
        fetch, _ = await fetched(keeper, source_of("team/pickled"))
        assert "has no safetensors, only pytorch_model.bin" in fetch.failed
        source = source_of("team/coded")
        fetch, _ = await fetched(keeper, source)
        assert fetch.here
        with pytest.raises(ModelNotHere, match="auto_map"):
            await keeper.take(source)
        # With its code only where the deployment says so, which is another entry.
        trusted = source_of("team/coded", code=True)
        fetch, _ = await fetched(keeper, trusted)
        assert fetch.here
        assert (await keeper.take(trusted) / "modeling.py").exists()
    async with keeping(tmp_path / "d", hub, LocalPolicy(pickled_weights=True, auto_map=True)) as keeper:
        fetch, _ = await fetched(keeper, source_of("team/pickled"))
        assert fetch.here, fetch.failed
        fetch, _ = await fetched(keeper, source)
        assert not (await keeper.take(source) / "modeling.py").exists()


async def test_a_host_the_policy_does_not_name_gets_no_request(tmp_path, hub):
    async with keeping(tmp_path / "c", hub, LocalPolicy(model_hosts=("127.0.0.1",))) as keeper:
        fetch, _ = await fetched(keeper, source_of(SMALL))
        assert "does not allow models from localhost" in fetch.failed
        assert hub.tokens_at_cdn == []


async def test_gguf_is_picked_by_quantisation(tmp_path, hub):
    hub.files["team/g"] = {
        "m-Q4_K_M.gguf": b"GGUF4" * 10,
        "m-Q8_0-00001-of-00002.gguf": b"a" * 10,
        "m-Q8_0-00002-of-00002.gguf": b"b" * 10,
        "README.md": b"x",
    }
    async with keeping(tmp_path / "c", hub) as keeper:
        for text, names in [
            ("team/g", ["m-Q4_K_M.gguf"]),
            ("team/g:Q8_0", ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]),
        ]:
            source = source_of(text, engine="llamacpp")
            fetch, _ = await fetched(keeper, source)
            assert fetch.here, fetch.failed
            path = await keeper.take(source)
            assert path.name == names[0]
            assert sorted(tree(path.parent)) == names
        fetch, _ = await fetched(keeper, source_of("team/g:Q2", engine="llamacpp"))
        assert "no GGUF file with Q2" in fetch.failed


async def test_a_folder_is_copied_when_told(tmp_path, hub):
    folder = tmp_path / "nas"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "x").write_bytes(tensors(1000))
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").symlink_to("blobs/x")
    (folder / "gone.json").symlink_to("nowhere")
    async with keeping(tmp_path / "c", hub, LocalPolicy(sources=(str(tmp_path),))) as keeper:
        source = source_of(f"nfs+copy:{folder}")
        fetch, _ = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        assert tree(await keeper.take(source)) == {"config.json": b"{}", "model.safetensors": tensors(1000)}
        fetch, _ = await fetched(keeper, source_of(f"nfs+copy:{tmp_path / 'no'}"))
        assert "is no folder" in fetch.failed


async def test_modelscope(tmp_path, hub):
    hub.cuts[WEIGHTS] = [100_000]
    async with keeping(tmp_path / "c", hub, LocalPolicy(sources=("modelscope:team/*",))) as keeper:
        source = source_of("modelscope:team/small")
        fetch, _ = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        path = await keeper.take(source)
        assert (
            hashlib.sha256((path / WEIGHTS).read_bytes()).digest() == hashlib.sha256(hub.files[SMALL][WEIGHTS]).digest()
        )
        fetch, _ = await fetched(keeper, source_of("modelscope:team/none"))
        assert fetch.failed is not None
    assert [said for name, said in hub.asked if name == WEIGHTS][1] is not None


@pytest.mark.parametrize("how", ["missing", "short", "small", "touched"])
async def test_a_damaged_model_is_named_once_and_only_the_damaged_file_comes_again(tmp_path, hub, how):
    source = source_of(SMALL)
    async with keeping(tmp_path / "c", hub) as keeper:
        await fetched(keeper, source)
        path = await keeper.take(source)
        victim = path / ("config.json" if how == "small" else WEIGHTS)
        content = victim.read_bytes()
        if how == "missing":
            victim.unlink()
        elif how == "short":
            victim.write_bytes(content[:-5])
        else:
            former = victim.stat()
            victim.write_bytes(b"!" + content[1:])
            # The clock of a file system moves in steps of up to 10 ms: this may all have been within one.
            os.utime(victim, ns=(former.st_atime_ns, former.st_mtime_ns + 10**7))
        hub.asked.clear()
        with pytest.raises(ModelNotHere, match=victim.name):
            await keeper.take(source)
        assert keeper.entry(source) is None
        fetch, _ = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        assert victim.read_bytes() == content
        assert {name for name, _ in hub.asked} == {victim.name}


async def test_a_folder_that_changes_behind_its_copy_is_copied_anew(tmp_path, hub, monkeypatch):
    folder = tmp_path / "nas"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(tensors(1000))
    finish, changed = cache_folder.finish_part, []

    def finished(here, path):
        done = finish(here, path)
        if path == "model.safetensors" and not changed:
            changed.append(path)
            (folder / "config.json").write_bytes(b'{"a": 1}')
        return done

    monkeypatch.setattr(cache_folder, "finish_part", finished)
    async with keeping(tmp_path / "c", hub, LocalPolicy(sources=(str(tmp_path),))) as keeper:
        source = source_of(f"nfs+copy:{folder}")
        fetch, told = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        assert any("changed at its place" in words for words in told)
        assert tree(await keeper.take(source)) == {"config.json": b'{"a": 1}', "model.safetensors": tensors(1000)}
