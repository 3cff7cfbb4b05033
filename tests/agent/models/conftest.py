"""A hub, and a keeper of models over a folder of the test's own."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from nebula_agent.adapters.cache_folder import CacheFolder
from nebula_agent.adapters.object_store import S3Access
from nebula_agent.decisions.model_cache import CacheLimits
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.loops.model_keeper import CacheSettings, ModelKeeper
from nebula_core.records.model_source import ModelSource, read_source
from nebula_core.runtime.clock import SystemClock
from tests.support.hub import Hub, serving, tensors
from tests.support.object_store import storing

#: What a disk of a test may be filled to: the machine's own fill is not what is tested.
ANY = CacheLimits(high=1.0, low=1.0)


@pytest.fixture
def hub():
    tiny = Path(__file__).resolve().parents[3] / ".." / "shared" / "models" / "tiny-qwen2"
    made = Hub(
        files={
            "team/small": {
                "config.json": b'{"architectures": ["X"]}',
                "tokenizer.json": b"{}" * 100,
                "model-00001-of-00002.safetensors": tensors(300_000, 1),
                "model-00002-of-00002.safetensors": tensors(200_000, 2),
                "model.safetensors.index.json": b'{"weight_map": {}}',
                "pytorch_model.bin": b"pickle" * 10,
                "modeling.py": b"raise SystemExit",
                ".gitattributes": b"*",
            }
        }
    )
    if tiny.is_dir():
        made.files["team/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}
    with serving(made):
        yield made


@pytest.fixture
def objects():
    with storing() as made:
        yield made


@contextlib.asynccontextmanager
async def keeping(root, hub, policy=None, *, limits=ANY, pins=(), boot="boot", at_once=2, env=None, s3=None):
    folder = CacheFolder(root, boot)
    keeper = ModelKeeper(
        folder,
        CacheSettings(limits, at_once, hub.env if env is None else env, s3 or S3Access()),
        policy or LocalPolicy(),
        SystemClock(),
        pause_seconds=0.02,
        pins=lambda: pins,
    )
    await keeper.open()
    try:
        yield keeper
    finally:
        await keeper.close()
        folder.close()


def source_of(text, **said) -> ModelSource:
    found = read_source(text, **said)
    assert isinstance(found, ModelSource), found
    return found


async def fetched(keeper, source, who="test"):
    """The download once it is over, and what was told on the way."""
    changed = asyncio.Event()
    told = []
    fetch = keeper.want(source, who, changed.set)
    async with asyncio.timeout(100):
        while not fetch.over:
            await changed.wait()
            changed.clear()
            told.append(fetch.words)
    keeper.let_go(fetch, who)
    return fetch, told


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".nebula")
    }
