"""Which placements are obeyed: none that was forged, replayed, meant for others, or made by a leader of the past."""

import asyncio

import pytest

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.node_files import KeptReplica, NodeFiles
from nebula_agent.decisions.obedience import Orders
from nebula_agent.loops.context import Problems
from nebula_agent.loops.obedience import Obedience
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.replica import Phase
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement
from nebula_core.store.watcher import Changed, Watcher
from tests.support.agent import eventually
from tests.support.records import a_placement


class Owners:
    """Stands where the owners are: keeps what they are told."""

    def __init__(self):
        self.owners = {}
        self.obeyed: list[Placement] = []
        self.forgotten: list[str] = []

    async def obey(self, placement, signed):
        assert signed.payload == placement.to_json()
        self.obeyed.append(placement)
        self.owners[placement.replica] = type("Owner", (), {"placement": placement, "signed": signed})()

    async def forget(self, replica):
        self.forgotten.append(replica)
        return True


class Desk:
    def __init__(self, directory, store, orders=None):
        self.key = SigningKey.generate()
        self.owners = Owners()
        self.problems = Problems()
        self.files = NodeFiles(directory)
        self.files.open()
        self.watcher = Watcher(store)
        self.obedience = Obedience(
            node="n1",
            store=store,
            watcher=self.watcher,
            keys=VerifyKeys([self.key.public]),
            files=self.files,
            orders=orders or Orders(),
            replicas=self.owners,
            problems=self.problems,
            disk=DiskThreads("test"),
        )

    async def tell(self, *entries):
        """As the watcher would, after one batch of changes."""
        changes = tuple(
            Change(revision=number, kind=ChangeKind.PLACEMENT, id=replica, value=value)
            for number, (replica, value) in enumerate(entries, 1)
        )
        snapshot = ClusterSnapshot(
            placements={replica: a_placement(replica) for replica, value in entries if value is not None}
        )
        self.obedience.heard(snapshot, Changed(durable=changes))
        await self.obedience.iterate()

    def signed(self, placement, key=None):
        return sign_placement(key or self.key, placement).to_json()


@pytest.fixture
async def desk(tmp_path, store):
    made = Desk(tmp_path, store)
    yield made
    made.files.close()
    await made.watcher.stop()


async def test_a_signed_order_is_obeyed_once_and_remembered_on_disk(desk):
    placement = a_placement(epoch=2, revision=5)
    await desk.tell(("chat-r1", desk.signed(placement)))
    await desk.tell(("chat-r1", desk.signed(placement)))
    assert desk.owners.obeyed == [placement]
    assert desk.files.orders().max_epoch == 2


@pytest.mark.parametrize(
    ("changes", "stored_as", "said"),
    [
        ({"node": "n2"}, "chat-r1", "made for node 'n2'"),
        ({}, "chat-r2", "stored as 'chat-r2'"),
    ],
)
async def test_what_is_meant_for_others_is_refused(desk, changes, stored_as, said):
    await desk.tell((stored_as, desk.signed(a_placement(**changes))))
    assert desk.owners.obeyed == []
    assert said in desk.problems.all()[0].message


async def test_an_older_order_is_refused_and_the_refusal_ends_with_a_good_one(desk):
    await desk.tell(("chat-r1", desk.signed(a_placement(epoch=3, revision=9))))
    for epoch, revision in ((3, 8), (2, 100)):
        await desk.tell(("chat-r1", desk.signed(a_placement(epoch=epoch, revision=revision, wanted=Wanted.STOP))))
        assert "is older than 3, 9" in desk.problems.all()[0].message
    await desk.tell(("chat-r1", desk.signed(a_placement(epoch=3, revision=10, wanted=Wanted.STOP))))
    assert desk.problems.all() == ()
    assert [placement.order for placement in desk.owners.obeyed] == [(3, 9), (3, 10)]


async def test_an_old_placement_replayed_starts_nothing(desk):
    """A replica that was stopped and forgotten does not come back by its own old, well signed order."""
    old = desk.signed(a_placement(epoch=1, revision=1))
    await desk.tell(("chat-r1", old))
    await desk.tell(("chat-r1", desk.signed(a_placement(epoch=1, revision=2, wanted=Wanted.STOP))))
    del desk.owners.owners["chat-r1"]
    await desk.tell(("chat-r1", old))
    assert len(desk.owners.obeyed) == 2
    # Nor one of a leader that was replaced, for a replica never seen.
    await desk.tell(("chat-r2", desk.signed(a_placement("chat-r2", epoch=2, revision=1))))
    await desk.tell(("chat-r3", desk.signed(a_placement("chat-r3", epoch=1, revision=9))))
    assert "chat-r3" not in {placement.replica for placement in desk.owners.obeyed}


async def test_placements_of_two_leaders_read_at_once_are_both_obeyed(desk):
    """An agent that was away while the leader changed: the older leader's unchanged decisions stand."""
    await desk.tell(
        ("chat-r2", desk.signed(a_placement("chat-r2", epoch=5, revision=20))),
        ("chat-r1", desk.signed(a_placement("chat-r1", epoch=3, revision=10))),
    )
    assert {placement.replica for placement in desk.owners.obeyed} == {"chat-r1", "chat-r2"}


async def test_a_placement_that_vanished_is_handed_over_as_such(desk):
    await desk.tell(("chat-r1", desk.signed(a_placement())))
    await desk.tell(("chat-r1", None))
    assert desk.owners.forgotten == ["chat-r1"]


async def test_while_another_agent_has_the_name_nothing_is_obeyed(desk):
    desk.obedience.suspended = True
    await desk.tell(("chat-r1", desk.signed(a_placement())))
    assert desk.owners.obeyed == []


async def test_a_resync_reads_the_signed_form_from_the_store(tmp_path, store):
    desk = Desk(tmp_path, store)
    epoch = await store.acquire_lease("t", 60)
    placement = a_placement(epoch=epoch, revision=1)
    await store.apply_placements(
        epoch,
        [
            ("chat-r1", sign_placement(desk.key, placement)),
            ("chat-r2", sign_placement(desk.key, a_placement("chat-r2", node="n2", epoch=epoch))),
        ],
    )
    desk.watcher.add_listener(desk.obedience.heard)
    async with desk.watcher:
        working = asyncio.create_task(desk.obedience.iterate())
        await eventually(lambda: desk.owners.obeyed, "the placement is obeyed")
        await working
    assert desk.owners.obeyed == [placement]
    assert desk.problems.all() == ()
    desk.files.close()


async def test_a_replica_whose_placement_vanished_while_nobody_listened_is_forgotten_once_stopped(cluster):
    agent = cluster.agent().start()
    placement = await cluster.place(cluster.placement())
    await cluster.until(Phase.READY)
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    file = agent.data / "replicas" / "chat-r1.json"
    # The report may be there before the disk has it.
    await eventually(lambda: KeptReplica.from_json(file.read_bytes()).phase is Phase.STOPPED, "it is written down")
    agent.kill()
    await cluster.remove("chat-r1")
    agent.start()
    await cluster.returned(agent)

    async def forgotten():
        report = await cluster.report()
        return report.replicas == ()

    await eventually(forgotten, "it is forgotten")
