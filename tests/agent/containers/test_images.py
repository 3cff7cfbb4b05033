"""Images from a real registry: pulled by digest with progress, refused when they moved, told when they cannot be had."""

import asyncio
import contextlib

import pytest

from nebula_agent.adapters.catalog_file import read_catalog
from nebula_agent.adapters.docker_engine import DockerEngine
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.loops.image_commands import image_handlers
from nebula_agent.loops.image_keeper import FAILED_SECONDS, ImageKeeper, ImageNotPulled
from nebula_core.records.command import Command
from nebula_core.records.image_ref import parse_image
from nebula_core.runtime.clock import SystemClock
from tests.support.clock import FakeClock
from tests.support.docker import Registry, make_small_image

pytestmark = pytest.mark.timeout(120, func_only=True)


@contextlib.asynccontextmanager
async def keeping(docker, *allowed, facts=None, stall_seconds=30.0, pins=()):
    engine = DockerEngine(docker.address)
    known = facts or await engine.facts()
    keeper = ImageKeeper(
        engine,
        lambda: known,
        read_catalog(None),
        LocalPolicy(images=allowed),
        SystemClock(),
        stall_seconds=stall_seconds,
        pause_seconds=0.05,
        pins=lambda: pins,
    )
    try:
        yield keeper
    finally:
        await keeper.close()
        engine.close()


async def pulled(keeper, name):
    """The pull once it is over, and what was told on the way."""
    changed = asyncio.Event()
    told = []

    def note():
        # At once: on a quick machine the next word is there before a waiter runs.
        told.extend(pull.words for pull in pulls)
        changed.set()

    pulls = []
    pull = keeper.want(parse_image(name), "test", note)
    pulls.append(pull)
    async with asyncio.timeout(60):
        while not pull.over:
            await changed.wait()
            changed.clear()
    return pull, told


@pytest.fixture(scope="module")
def pushed(docker, registry):
    """An image of 24 MiB that cannot be made smaller; (name, digest)."""
    make_small_image(docker, "big:1", megabytes=24)
    digest = registry.push(docker, "big:1", "team/big:1")
    client = docker.client()
    client.remove_image("big:1", force=True)
    client.close()
    return f"{registry.host}/team/big:1", digest


async def test_a_pull_tells_its_progress_and_ends_with_the_digest(docker, registry, pushed, monkeypatch):
    monkeypatch.setattr("nebula_agent.loops.image_keeper.TELL_SECONDS", 0.0)
    name, digest = pushed
    async with keeping(docker, registry.host) as keeper:
        pull, told = await pulled(keeper, name)
        assert pull.failed is None
        assert pull.digest == digest
        assert any("%" in words and "of 25" in words for words in told), told
        [found] = [image for image in keeper.reported() if name in image.tags]
        assert any(one.endswith(digest) for one in found.digests)
        assert found.size_bytes > 24 * 1024**2
        assert keeper.pulls() == ()
        # What is here is not pulled again.
        again, told = await pulled(keeper, name)
        assert again.image.id == pull.image.id  # its tag came after the first look
        assert not any("%" in words for words in told)


async def test_a_tag_that_moved_is_refused_by_the_digest_of_the_policy(docker, registry, pushed):
    name, digest = pushed
    bare = name.rpartition(":")[0]
    async with keeping(docker, f"{bare}@{digest}") as keeper:
        pull, _ = await pulled(keeper, name)
        assert pull.digest == digest
        make_small_image(docker, "other:1", megabytes=1)
        moved = registry.push(docker, "other:1", "team/big:1")
        assert moved != digest
        pull, _ = await pulled(keeper, name)
        assert "does not allow image" in pull.failed
        # By its digest the former content is still to be had.
        pull, _ = await pulled(keeper, f"{name}@{digest}")
        assert pull.digest == digest


async def test_what_cannot_be_had_is_told_with_what_to_do(docker, registry, tmp_path):
    async with keeping(docker, registry.host) as keeper:
        pull, _ = await pulled(keeper, f"{registry.host}/team/nothing:1")
        assert "the registry has no such image" in pull.failed
        [shown] = keeper.pulls()
        assert shown.failed
        assert "nothing" in shown.image
        real = keeper._clock
        keeper._clock = FakeClock(real.monotonic() + FAILED_SECONDS + 1)
        assert keeper.pulls() == ()
        keeper._clock = real
        pull, _ = await pulled(keeper, "docker.io/evil/miner:1")
        assert pull.failed is not None
    closed = Registry(tmp_path / "closed", password=True).start()
    try:
        async with keeping(docker, closed.host) as keeper:
            pull, _ = await pulled(keeper, f"{closed.host}/team/secret:1")
            assert "docker login" in pull.failed
    finally:
        closed.close()


async def test_a_registry_that_is_away_or_hangs_is_tried_three_times(docker, tmp_path):
    away = Registry(tmp_path / "away")
    async with keeping(docker, away.host) as keeper:
        pull, told = await pulled(keeper, f"{away.host}/team/x:1")
        assert "not reachable" in pull.failed
        assert any("try 2 of 3 failed" in words for words in told)


async def test_a_layer_that_breaks_off_fails_and_leaves_nothing(docker, tmp_path):
    broken = Registry(tmp_path / "broken").start()
    try:
        make_small_image(docker, "half:1", megabytes=4)
        broken.push(docker, "half:1", "team/half:1")
        client = docker.client()
        client.remove_image("half:1", force=True)
        client.close()
        broken.break_layer()
        async with keeping(docker, broken.host) as keeper:
            pull, _ = await pulled(keeper, f"{broken.host}/team/half:1")
            assert pull.failed is not None
            assert not any("half" in tag for image in keeper.images for tag in image.tags)
    finally:
        broken.close()


async def test_a_disk_that_would_not_hold_it_is_not_filled(docker, registry, pushed):
    name, digest = pushed
    client = docker.client()
    for tag in (name, f"{name.rpartition(':')[0]}@{digest}"):
        with contextlib.suppress(Exception):
            client.remove_image(tag, force=True)
    client.close()

    class Small:
        root_dir = "/var/lib/docker"
        free_bytes = 8 * 1024**2

    async with keeping(docker, registry.host, facts=Small()) as keeper:
        pull, _ = await pulled(keeper, f"{name}@{digest}")
        assert "GiB free" in pull.failed
        assert "images prune" in pull.failed
        known = keeper.want(parse_image(f"{name}@{digest}"), "b", lambda: None, size_bytes=10**9)
        await asyncio.wait_for(known.task, 30)
        assert "1.1 GiB are needed" in known.failed


async def test_nobody_waits_and_the_pull_ends(docker, registry, pushed):
    name, digest = pushed
    async with keeping(docker, registry.host) as keeper:
        pull = keeper.want(parse_image(f"{name}@{digest}"), "a", lambda: None)
        assert keeper.want(parse_image(f"{name}@{digest}"), "b", lambda: None) is pull
        keeper.let_go(pull, "a")
        assert not pull.task.cancelled()
        keeper.let_go(pull, "b")
        await asyncio.gather(pull.task, return_exceptions=True)
        assert pull.task.cancelled()
        assert keeper.pulls() == ()


async def test_commands_pull_and_prune(docker, registry):
    def command(kind, **arguments):
        return Command(id="0" * 16, node="n1", kind=kind, arguments=arguments, issued_at=0, expires_at=1)

    make_small_image(docker, "unused:1", megabytes=1)
    kept = make_small_image(docker, "kept:1")
    used = make_small_image(docker, "used:1", megabytes=2)
    client = docker.client()
    client.create_container("used:1", command=["sleep", "1"])
    client.close()
    async with keeping(docker, registry.host, pins=(kept,)) as keeper:
        handlers = image_handlers(keeper)
        told = []
        with pytest.raises(ImageNotPulled, match="does not allow"):
            await handlers["image.pull"](command("image.pull", image="docker.io/evil/miner"), lambda *a: told.append(a))
        with pytest.raises(ImageNotPulled, match="no name of an image"):
            await handlers["image.pull"](command("image.pull", image="../x y"), lambda *a: told.append(a))
        outcome = await handlers["image.prune"](command("image.prune"), lambda *a: told.append(a))
        assert outcome.facts["freed_bytes"] > 1024**2
        left = {image.id for image in keeper.images}
        assert {kept, used} <= left
        assert not any("unused" in tag for image in keeper.images for tag in image.tags)
