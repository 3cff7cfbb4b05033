"""What one worker holds against a body, all workers do: told in reports, by digests that nobody else can make."""

import contextlib
from collections.abc import AsyncIterator
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.event import ChangeKind
from nebula_core.records.report import ProxyReport, SuspectBody
from nebula_core.records.snapshot import ReceivedProxy
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.decisions.quarantine import FIRST_SECONDS, MEMORY_SECONDS, Death
from nebula_proxy.traffic.plane import Routing
from nebula_proxy.traffic.quarantine import ACQUITTED_SECONDS, TOLD, Quarantine
from nebula_proxy.traffic.reporting import Reporter
from nebula_proxy.traffic.table_feeder import TableFeeder
from tests.support.data_plane import MODEL, RunningPlane, endpoint, key, model, running_plane, until
from tests.support.records import a_proxy_report
from tests.support.scripted_engine import Conversation, ScriptedEngine

SECRET = 77
BODY = b'{"model": "m", "messages": "the prompt of somebody"}'


class Peer:
    """One process's quarantine, and what the others hear of it. Its clock is its own."""

    def __init__(self, name: str, *, secret: int = SECRET) -> None:
        self.name = name
        self.living: set[str] = set()
        self.quarantine = Quarantine(lambda death: death.replica in self.living, secret)
        self._sequence = 0

    def died(self, replica: str, now: float, body: bytes = BODY) -> None:
        self.quarantine.died(body, Death(replica, "e1", now, 1))

    def report(self, now: float) -> ProxyReport:
        self._sequence += 1
        suspects, acquitted = self.quarantine.told(now)
        report = a_proxy_report(self.name, sequence=self._sequence, suspects=suspects, acquitted=acquitted)
        return ProxyReport.from_json(report.to_json())

    def hears(self, *reports: ProxyReport, now: float) -> None:
        self.quarantine.follow(self.name, [ReceivedProxy(report, now) for report in reports])

    def refuses(self, now: float) -> float | None:
        return self.quarantine.refuses(BODY, now)


def test_what_one_saw_all_refuse() -> None:
    a, b = Peer("a"), Peer("b")
    a.died("r0", 100.0)
    a.died("r1", 101.0)
    b.hears(a.report(103.0), now=5003.5)  # by its own clock
    assert b.refuses(5004.0) == pytest.approx(FIRST_SECONDS - 2.5)
    assert b.quarantine.refuses(b"another", 5004.0) is None
    b.quarantine.sweep(5003.5 + MEMORY_SECONDS)
    assert len(b.quarantine) == 0


def test_one_death_here_and_one_there_are_two() -> None:
    a, b, c = Peer("a"), Peer("b"), Peer("c")
    a.died("r0", 0.0)
    b.died("r1", 0.5)
    first, second = a.report(1.0), b.report(1.0)
    a.hears(first, second, now=1.0)
    b.hears(first, second, now=1.0)
    c.hears(first, second, now=1.0)
    assert [peer.refuses(2.0) is not None for peer in (a, b, c)] == [True] * 3
    # The same engine, seen by both, died once.
    d, e = Peer("d"), Peer("e")
    d.died("r0", 0.0)
    e.died("r0", 0.0)
    d.hears(e.report(1.0), now=1.0)
    assert d.refuses(2.0) is None


def test_who_saw_a_death_takes_it_back() -> None:
    a, b = Peer("a"), Peer("b")
    a.died("r0", 0.0)
    a.died("r1", 0.0)
    b.hears(a.report(1.0), now=1.0)
    b.living = {"r0", "r1"}  # the others cannot know whether it was one
    assert b.refuses(2.0) is not None
    a.living = {"r1"}
    b.hears(a.report(2.0), now=2.0)
    assert b.refuses(2.5) is None
    a.living = {"r0", "r1"}
    b.hears(a.report(3.0), now=3.0)
    assert len(b.quarantine) == 0


def test_an_answer_anywhere_acquits_everywhere() -> None:
    a, b, c = Peer("a"), Peer("b"), Peer("c")
    a.died("r0", 0.0)
    told = a.report(1.0)
    b.hears(told, now=1.0)
    c.hears(told, now=1.0)
    b.quarantine.served(BODY, 1.5)
    again = a.report(2.0)
    b.hears(again, now=2.0)  # it was made before the answer was heard of
    assert len(b.quarantine) == 0
    a.hears(b.report(2.0), now=2.0)
    assert len(a.quarantine) == 0
    c.hears(a.report(3.0), now=3.0)
    assert len(c.quarantine) == 0
    assert b.report(3.0).acquitted
    assert not b.report(2.0 + ACQUITTED_SECONDS).acquitted


def test_one_that_is_gone_has_not_taken_it_back() -> None:
    a, b = Peer("a"), Peer("b")
    a.died("r0", 0.0)
    a.died("r1", 0.0)
    b.hears(a.report(1.0), now=1.0)
    b.hears(now=2.0)
    assert b.refuses(2.0) is not None


def test_without_a_secret_nothing_is_told_and_with_one_nobody_else_can_tell() -> None:
    mute, a, stranger = Peer("mute", secret=0), Peer("a"), Peer("stranger", secret=78)
    for peer in (mute, a, stranger):
        peer.died("r0", 0.0)
        peer.died("r1", 0.0)
    assert mute.report(1.0).suspects == ()
    assert a.report(1.0).suspects[0].digest != stranger.report(1.0).suspects[0].digest
    assert b"prompt" not in a.report(1.0).to_json().encode()
    other = Peer("b")
    other.hears(stranger.report(1.0), now=1.0)
    assert other.refuses(1.0) is None


def test_a_report_stays_small_and_names_the_worst() -> None:
    a = Peer("a")
    for number in range(TOLD * 3):
        a.died("r0", float(number), body=b"%d" % number)
    a.died("r1", 500.0, body=b"7")
    report = a.report(501.0)
    assert len(report.suspects) == TOLD
    assert len(report.suspects[0].deaths) == 2
    b = Peer("b")
    b.hears(report, now=501.0)
    assert b.quarantine.refuses(b"7", 502.0) is not None


def test_what_makes_no_sense_is_passed_over() -> None:
    b = Peer("b")
    deaths = Peer("x")
    deaths.died("r0", 0.0)
    (suspect,) = deaths.report(0.0).suspects
    nonsense = SuspectBody(digest="no hex", length=3, deaths=suspect.deaths)
    empty = SuspectBody(digest="aa", length=3, deaths=())
    b.hears(a_proxy_report("a", suspects=(nonsense, empty), acquitted=("zz", "aa")), now=1.0)
    assert len(b.quarantine) == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(["died", "served", "lives", "sweep"]),
        st.sampled_from(["r0", "r1", "r2"]),
    ),
    max_size=30,
)


@given(STEPS)
def test_once_all_have_heard_all_they_agree(steps: list[tuple[str, str, str]]) -> None:
    peers = MappingProxyType({"a": Peer("a"), "b": Peer("b")})
    now = 0.0
    for name, what, replica in steps:
        now += 1.0
        peer = peers[name]
        if what == "died":
            peer.died(replica, now)
        elif what == "served":
            peer.quarantine.served(BODY, now)
        elif what == "lives":
            peer.living.add(replica)
        else:
            peer.quarantine.sweep(now)
    # What was answered is told for a while; after that, and two rounds of reports, there is nothing left to say.
    for seconds in (0.1, 0.2, ACQUITTED_SECONDS + 0.3, ACQUITTED_SECONDS + 0.4):
        reports = [peer.report(now + seconds) for peer in peers.values()]
        for peer in peers.values():
            peer.hears(*reports, now=now + seconds)
    later = now + ACQUITTED_SECONDS + 0.5
    verdicts = {name: peer.refuses(later) for name, peer in peers.items()}
    assert (verdicts["a"] is None) == (verdicts["b"] is None)
    for peer in peers.values():
        peer.quarantine.sweep(later + 10 * MEMORY_SECONDS)
        assert not peer.quarantine.held
        assert not peer.quarantine._lengths


@contextlib.asynccontextmanager
async def worker(store: Store, name: str, *engines: ScriptedEngine) -> AsyncIterator[RunningPlane]:
    """A data plane that tells and hears through the store, as a worker process does; its table is the test's."""
    routes = [endpoint(f"m-r{number}", engine.port) for number, engine in enumerate(engines)]
    async with running_plane(model(*routes), routing=Routing(secret=SECRET)) as running:
        plane = running.plane
        plane.proxy = name
        feeder = TableFeeder(plane)
        reporter = Reporter(plane, store, lambda: 0)
        watcher = Watcher(store, poll_seconds=0.05, reports=feeder.reports, block=False)
        watcher.add_listener(feeder.take)
        async with watcher, TaskSupervisor(name) as tasks:
            await watcher.synced(60.0)
            # Once, and not again before long: what cannot wait for the next report is not told by it here.
            tasks.every("report", 3600.0, reporter.publish)
            tasks.repeat("alarm", reporter.alarm)
            yield running


def both_deaths_are_known(running: RunningPlane) -> bool:
    return any(len(deaths) == 2 for held in running.plane.quarantine.held.values() for deaths in held.told.values())


async def test_a_client_that_comes_again_to_another_worker_is_refused_there(store: Store) -> None:
    """Two workers and one store: after the first has seen two engines die, the second sends the request nowhere."""
    token, record = key()
    await store.put(ChangeKind.KEY, record.id, record)
    deaths = 0

    async def killed(conversation: Conversation) -> None:
        nonlocal deaths
        deaths += 1
        conversation.reset()

    poison = {"model": MODEL, "messages": [{"role": "user", "content": "poison"}]}
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(killed)) for _ in range(4)]
        one = await stack.enter_async_context(worker(store, "w1", *engines))
        other = await stack.enter_async_context(worker(store, "w2", *engines))
        async with one.client(token) as first, other.client(token) as second:
            answer = await first.post("/v1/chat/completions", json=poison)
            assert answer.status_code == 502
            assert deaths == 2
            await until(lambda: both_deaths_are_known(other))
            again = await second.post("/v1/chat/completions", json=poison)
            assert again.status_code == 422
            assert again.json()["error"]["code"] == "request_quarantined"
            assert deaths == 2
            harmless = await second.post("/v1/chat/completions", json=poison | {"user": "another"})
            assert harmless.status_code != 422
