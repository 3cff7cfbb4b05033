"""The snapshot on disk: what was written is read, and what cannot be trusted is not."""

from pathlib import Path

import pytest

from nebula_core.records.access import Role
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.node import NodeIntent
from nebula_core.records.report import RoutingReport
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.security.credentials import mint_key
from nebula_core.security.files import write_secret
from nebula_core.store import kept
from tests.support.records import a_placement, a_report, a_status

TOKEN, KEY = mint_key("client", Role.CLIENT, now=1.0, created_by="test")
SNAPSHOT = ClusterSnapshot(
    incarnation="inc",
    revision=41,
    deployments=frozen_map({"chat": Deployment(name="chat", generation=1, spec=DeploymentSpec(source="m"))}),
    placements=frozen_map({"chat-r1": a_placement()}),
    keys=frozen_map({KEY.id: KEY}),
    intents=frozen_map({"n1": NodeIntent(node="n1", generation=1)}),
)
NODE = RoutingReport.from_json(a_report(replicas=(a_status(),)).to_json())


async def content() -> bytes:
    return await kept.written(SNAPSHOT, [NODE], 1234.5)


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / kept.FILE_NAME
    assert kept.read(path) is None
    write_secret(path, await content())
    found = kept.read(path)
    assert found is not None
    assert found.at == 1234.5
    assert found.nodes == (NODE,)
    assert (found.snapshot.incarnation, found.snapshot.revision) == ("inc", 41)
    assert found.snapshot.deployments == SNAPSHOT.deployments
    assert found.snapshot.placements == SNAPSHOT.placements
    assert found.snapshot.keys == SNAPSHOT.keys
    assert not found.snapshot.intents  # nobody routes by them


async def test_no_secret_is_in_it() -> None:
    assert TOKEN.split("_", 2)[2].encode() not in await content()


async def test_what_cannot_be_trusted_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / kept.FILE_NAME
    whole = await content()
    for raw, why in (
        (b"", "unpack"),
        (b"not json\n", "malformed"),
        (whole.replace(b'"schema": 1', b'"schema": 2'), "schema 2"),
        (b"\n".join(whole.splitlines()[:-1]), "3 of 4 lines"),
        (whole[:-20], "malformed|truncated|EOF"),
        (whole.replace(b'"generation":1', b'"generation":"x"'), "generation"),
    ):
        write_secret(path, raw)
        with pytest.raises(ValueError, match=why):
            kept.read(path)
    write_secret(path, whole)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="other users"):
        kept.read(path)
    # A kind of record of a newer version is passed over.
    path.unlink()
    write_secret(path, whole.replace(b'"kind":"key"', b'"kind":"quota"'))
    found = kept.read(path)
    assert found is not None
    assert not found.snapshot.keys
