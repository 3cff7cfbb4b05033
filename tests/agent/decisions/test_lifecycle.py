"""The decision about a replica: laws over every situation, then a machine that plays its life with faults, then cases."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nebula_agent.decisions.backoff import LONGEST_SECONDS, MOST_IN_WINDOW, Failures
from nebula_agent.decisions.lifecycle import Action, Life, Limits, Seen, Verb, decide, first_step
from nebula_agent.decisions.start_deadline import ready_by, start_deadline
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import TRANSITIONS, Phase, may_move

PHASES = [phase for phase in Phase if phase is not Phase.LOST]
LIMITS = Limits(start_deadline=100, frozen=30, silent=60, unhealthy=20)
moments = st.none() | st.floats(0, 1000)


@st.composite
def situations(draw):
    life = draw(st.sampled_from(Life))
    times = sorted(draw(st.lists(st.floats(0, 1000), max_size=6)))
    return Seen(
        phase=draw(st.sampled_from(PHASES)),
        life=life,
        digest=draw(st.sampled_from([None, "a", "b"])),
        started_at=draw(moments) if life is not Life.NONE else None,
        proven=draw(st.booleans()),
        unhealthy_since=draw(moments),
        silent_since=draw(moments),
        frozen_since=draw(moments),
        exit_reason=draw(st.none() | st.just("exit code 1")),
        failures=Failures(tuple(times), draw(st.integers(1, 30)) if times else 0),
        given_up=draw(st.sampled_from([None, "a", "b"])),
        blocked=draw(st.none() | st.just("held")),
        refused=draw(st.none() | st.just("policy")),
    )


@given(st.sampled_from(Wanted), situations(), st.floats(0, 1000))
@settings(max_examples=1000)
def test_every_situation_has_an_answer_that_the_table_allows(wanted, seen, now):
    action = decide(wanted, "a", seen, now, LIMITS)
    match action.verb:
        case Verb.WAIT:
            assert action.phase is seen.phase
        case Verb.MOVE:
            assert action.phase is not seen.phase
            assert may_move(seen.phase, action.phase)
        case Verb.START:
            assert wanted is Wanted.RUN
            assert seen.life is Life.NONE
            assert seen.refused is None
            assert seen.blocked is None
            assert may_move(seen.phase, Phase.CREATING)
        case Verb.STOP:
            # A live engine is ended only by an order, another launch, or a verdict that has a reason.
            assert seen.life is not Life.NONE
            assert wanted is Wanted.STOP or action.reason


@given(situations(), st.floats(0, 1000))
def test_an_order_to_stop_is_never_answered_by_anything_but_the_way_there(seen, now):
    action = decide(Wanted.STOP, "a", seen, now, LIMITS)
    assert action.verb in {Verb.STOP, Verb.MOVE, Verb.WAIT}
    if seen.life is not Life.NONE:
        assert action == Action(Verb.STOP, Phase.STOPPED)


@given(situations(), st.floats(0, 1000))
def test_a_drain_starts_nothing_and_stops_nothing_that_is_well(seen, now):
    action = decide(Wanted.DRAIN, "a", seen, now, LIMITS)
    assert action.verb is not Verb.START
    if action.verb is Verb.STOP:
        assert action.failure


@pytest.mark.parametrize("current", PHASES)
@pytest.mark.parametrize("target", PHASES)
def test_the_first_step_leads_to_the_target_or_to_failed(current, target):
    if current is target:
        return
    here, steps = current, 0
    while here is not target and steps < 10:
        step = first_step(here, target)
        assert step in TRANSITIONS[here]
        here, steps = step, steps + 1
    assert here is target


class ReplicaLife(RuleBasedStateMachine):
    """An owner in a small world: it does what is decided; engines start, become ready, hang, die, cannot be started."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.wanted = Wanted.RUN
        self.digest = "a"
        self.phase = Phase.PENDING
        self.life = Life.NONE
        self.launched = None
        self.started_at = None
        self.proven = False
        self.frozen_since = self.unhealthy_since = None
        self.failures = Failures()
        self.given_up = None
        self.blocked = self.refused = None
        self.reason = None
        self.starts = 0
        self.orders = 0

    def seen(self):
        return Seen(
            phase=self.phase,
            life=self.life,
            digest=self.launched,
            started_at=self.started_at,
            proven=self.proven,
            frozen_since=self.frozen_since,
            unhealthy_since=self.unhealthy_since,
            failures=self.failures,
            given_up=self.given_up,
            blocked=self.blocked if self.life is Life.NONE else None,
            refused=self.refused if self.life is Life.NONE else None,
            phase_reason=self.reason,
        )

    def enter(self, action):
        assert may_move(self.phase, action.phase)
        if action.failure:
            self.failures = self.failures.failed(self.now, ready_for=None)
            if self.failures.spent(self.now):
                self.given_up = self.digest
        self.phase, self.reason = action.phase, action.reason

    def step(self):
        action = decide(self.wanted, self.digest, self.seen(), self.now, LIMITS)
        match action.verb:
            case Verb.START:
                assert self.life is Life.NONE, "two engines of one replica"
                assert may_move(self.phase, Phase.CREATING)
                self.phase, self.reason = Phase.CREATING, None
                self.life, self.launched, self.started_at = Life.RUNNING, self.digest, self.now
                self.proven, self.given_up = False, None
                self.frozen_since = self.unhealthy_since = None
                self.starts += 1
            case Verb.STOP:
                self.life, self.started_at, self.proven = Life.NONE, None, False
                self.frozen_since = self.unhealthy_since = None
                self.enter(action)
            case Verb.MOVE:
                self.enter(action)
            case Verb.WAIT:
                self.reason = action.reason
        return action

    def settle(self):
        for _ in range(12):
            if self.step().verb is Verb.WAIT:
                return
        raise AssertionError(f"never at rest: {self.seen()}")

    @rule(wanted=st.sampled_from(Wanted))
    def order(self, wanted):
        self.wanted = wanted
        self.orders += 1

    @rule(digest=st.sampled_from("ab"))
    def another_spec(self, digest):
        self.digest = digest

    @rule()
    def look(self):
        self.step()

    @rule(seconds=st.sampled_from([0.5, 3, 40, 700]))
    def time_passes(self, seconds):
        self.now += seconds
        self.settle()

    @precondition(lambda self: self.life is Life.RUNNING)
    @rule()
    def becomes_ready(self):
        self.proven = True

    @precondition(lambda self: self.life is Life.RUNNING)
    @rule()
    def dies(self):
        self.life = Life.ENDED
        self.step()

    @precondition(lambda self: self.life is Life.RUNNING and self.proven)
    @rule()
    def hangs(self):
        self.frozen_since = self.now

    @precondition(lambda self: self.life is Life.RUNNING and self.proven)
    @rule(ill=st.booleans())
    def health(self, ill):
        self.unhealthy_since = self.now if ill else None

    @rule(held=st.booleans())
    def gpu_held(self, held):
        self.blocked = "held" if held else None

    @rule(refused=st.booleans())
    def policy(self, refused):
        self.refused = "policy" if refused else None

    @rule()
    def agent_restarts(self):
        """What is on disk is all that is left; what ran, runs on."""
        self.frozen_since = self.unhealthy_since = None

    @invariant()
    def no_phase_claims_what_is_not(self):
        if self.phase is Phase.READY:
            assert self.life is not Life.NONE
            assert self.proven

    def teardown(self):
        """The faults end: the replica comes to what is wanted and then rests."""
        self.blocked = self.refused = None
        self.frozen_since = self.unhealthy_since = None
        for _ in range(60):
            self.settle()
            if self.life is Life.RUNNING:
                self.proven = True
                self.settle()
            self.now += LONGEST_SECONDS
        rest = self.step()
        assert rest.verb is Verb.WAIT
        if self.wanted is Wanted.STOP:
            assert (self.phase, self.life) == (Phase.STOPPED, Life.NONE)
        elif self.wanted is Wanted.RUN:
            assert self.phase is Phase.READY or self.given_up == self.digest
        else:
            assert self.phase in {Phase.DRAINING, Phase.STOPPED, Phase.FAILED}
        starts = self.starts
        self.settle()
        assert self.starts == starts


TestReplicaLife = ReplicaLife.TestCase
TestReplicaLife.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def at(phase, **changes):
    return Seen(phase=phase, **changes)


def running(phase, **changes):
    return Seen(phase=phase, life=Life.RUNNING, digest="a", started_at=0.0, **changes)


def test_a_loading_engine_that_is_proven_becomes_ready():
    assert decide(Wanted.RUN, "a", running(Phase.LOADING, proven=True), 5, LIMITS) == Action(Verb.MOVE, Phase.READY)


def test_an_adopted_engine_stays_ready():
    seen = running(Phase.READY, proven=True)
    assert decide(Wanted.RUN, "a", seen, 5000, LIMITS) == Action(Verb.WAIT, Phase.READY)


def test_the_start_deadline_names_the_step_and_the_setting():
    seen = running(Phase.LOADING, waiting_for="/health answered 503")
    action = decide(Wanted.RUN, "a", seen, 100, LIMITS)
    assert (action.verb, action.phase, action.failure) == (Verb.STOP, Phase.FAILED, True)
    assert action.reason == (
        "not ready within 100 s, /health answered 503; raise start_deadline_seconds if it only needs longer"
    )


def test_an_engine_that_says_no_leaves_routing_and_may_come_back():
    ill = running(Phase.READY, proven=True, unhealthy_since=10.0)
    first = decide(Wanted.RUN, "a", ill, 11, LIMITS)
    assert (first.verb, first.phase, first.at) == (Verb.MOVE, Phase.LOADING, 30.0)
    well = running(Phase.LOADING, proven=True)
    assert decide(Wanted.RUN, "a", well, 12, LIMITS).phase is Phase.READY


def test_a_failed_one_waits_for_its_backoff_and_says_until_when():
    seen = at(Phase.FAILED, failures=Failures((10.0,), 1), phase_reason="exit code 1")
    assert decide(Wanted.RUN, "a", seen, 10.5, LIMITS) == Action(Verb.WAIT, Phase.FAILED, "exit code 1", at=11.0)
    assert decide(Wanted.RUN, "a", seen, 11.0, LIMITS).phase is Phase.PENDING


def test_the_fifth_failure_in_ten_minutes_is_the_last_and_another_launch_is_tried_at_once():
    seen = Seen(phase=Phase.LOADING, life=Life.ENDED, failures=Failures((1, 2, 3, 4), 4), exit_reason="exit code 1")
    action = decide(Wanted.RUN, "a", seen, 5, LIMITS)
    assert "Given up after 5 failures in 10 minutes" in action.reason
    given_up = at(Phase.FAILED, failures=Failures((1, 2, 3, 4, 5), 5), given_up="a")
    assert decide(Wanted.RUN, "a", given_up, 10_000, LIMITS).verb is Verb.WAIT
    assert decide(Wanted.RUN, "b", given_up, 6, LIMITS) == Action(Verb.MOVE, Phase.PENDING)


def test_a_blocked_start_waits_and_a_refused_one_fails_without_counting():
    blocked = decide(Wanted.RUN, "a", at(Phase.PENDING, blocked="gpu 0 is held"), 0, LIMITS)
    assert (blocked.verb, blocked.phase, blocked.reason) == (Verb.WAIT, Phase.PENDING, "gpu 0 is held")
    refused = decide(Wanted.RUN, "a", at(Phase.PENDING, refused="no vllm"), 0, LIMITS)
    assert (refused.verb, refused.phase, refused.failure) == (Verb.MOVE, Phase.FAILED, False)
    assert decide(Wanted.RUN, "a", at(Phase.FAILED), 0, LIMITS).phase is Phase.PENDING


@given(st.lists(st.floats(0.1, 400), min_size=1, max_size=40))
def test_backoff_doubles_to_five_minutes_and_is_forgiven_by_a_minute_of_readiness(gaps):
    failures, now, former = Failures(), 0.0, 0.0
    for gap in gaps:
        now += gap
        failures = failures.failed(now, ready_for=None)
        delay = failures.due() - now
        assert 0.999 <= delay <= LONGEST_SECONDS + 0.001
        assert delay == pytest.approx(min(LONGEST_SECONDS, max(1.0, former * 2)))
        former = delay
        assert failures.spent(now) == (len([at for at in failures.times if now - at < 600]) >= MOST_IN_WINDOW)
    assert failures.failed(now + 1, ready_for=61.0).due() == pytest.approx(now + 2)


def test_doubt_comes_before_the_verdict():
    still = running(Phase.READY, proven=True, frozen_since=10.0)
    limits = Limits(suspect=8, frozen=30)
    assert decide(Wanted.RUN, "a", still, 12, limits) == Action(Verb.WAIT, Phase.READY, at=18.0)
    doubt = decide(Wanted.RUN, "a", still, 18, limits)
    assert (doubt.verb, doubt.phase, doubt.at, doubt.failure) == (Verb.MOVE, Phase.LOADING, 40.0, False)
    verdict = decide(Wanted.RUN, "a", running(Phase.LOADING, proven=True, frozen_since=10.0), 40, limits)
    assert (verdict.verb, verdict.failure) == (Verb.STOP, True)
    moved = running(Phase.LOADING, proven=True)
    assert decide(Wanted.RUN, "a", moved, 20, limits).phase is Phase.READY


def test_one_canary_without_a_token_is_doubt_and_two_are_a_hang():
    once = decide(Wanted.RUN, "a", running(Phase.READY, proven=True, canary_failures=1), 5, LIMITS)
    assert (once.verb, once.phase, once.failure) == (Verb.MOVE, Phase.LOADING, False)
    twice = decide(Wanted.RUN, "a", running(Phase.LOADING, proven=True, canary_failures=2), 5, LIMITS)
    assert (twice.verb, twice.failure) == (Verb.STOP, True)
    assert "2 canaries" in twice.reason


def test_a_start_that_works_on_gets_more_time_but_not_for_ever():
    limits = Limits(start_deadline=100)
    working = running(Phase.LOADING, log_grew_at=95.0)
    first = decide(Wanted.RUN, "a", working, 120, limits)
    assert (first.verb, first.at) == (Verb.WAIT, 155.0)
    assert decide(Wanted.RUN, "a", working, 155, limits).failure
    assert decide(Wanted.RUN, "a", running(Phase.LOADING, log_grew_at=199.0), 200, limits).failure
    assert decide(Wanted.RUN, "a", running(Phase.LOADING), 100, limits).failure


def test_a_large_model_has_longer():
    assert start_deadline(300, None) == 300
    assert start_deadline(300, 150_000_000_000) == 1300
    assert ready_by(10, 300, None) == 310


def test_a_wall_clock_that_was_set_back_puts_no_failure_into_the_future():
    """Kept in unix seconds by an agent that ended; the next one finds itself an hour before."""
    kept = Failures((10_000.0,), 1)
    assert kept.shifted(-6_400.0, latest=100.0).due() == 101.0
    assert kept.shifted(-9_990.0, latest=100.0).due() == 11.0
