"""Retry and ejection: what may be tried again, and who is left out for how long."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.decisions.ejection import (
    LONGEST_SECONDS,
    UNREACHABLE,
    WINDOW_SECONDS,
    Evidence,
    Health,
    probe_over,
    probing,
    struck,
)
from nebula_proxy.decisions.resume import MOST_RESUMES
from nebula_proxy.decisions.retry import (
    MOST_UNREACHED,
    Budget,
    Circumstances,
    Step,
    Trouble,
    evidence_of,
    is_charged,
    may_be_repeated,
    next_step,
)

CIRCUMSTANCES = st.builds(
    Circumstances,
    trouble=st.sampled_from(Trouble),
    begun=st.booleans(),
    retried=st.integers(0, 6),
    unreached=st.integers(0, 6),
    fresh=st.booleans(),
    others=st.integers(0, 3),
    budget=st.booleans(),
    allowed=st.booleans(),
    resumable=st.booleans(),
    resumed=st.integers(0, 3),
    resume_budget=st.booleans(),
)


@given(CIRCUMSTANCES)
def test_the_laws_of_retry(given_: Circumstances) -> None:
    step = next_step(given_)
    if step is Step.RESUME:
        assert given_.begun
        assert given_.resumable
        assert given_.allowed
        assert given_.others > 0
        assert given_.resumed - given_.unreached < MOST_RESUMES
        assert given_.unreached <= MOST_UNREACHED
        assert given_.resume_budget
        assert given_.trouble is not Trouble.DIVERGED
    if given_.begun:
        # The request itself is never sent again after a byte; FRESH is for a continuation that got no answer yet.
        assert step in {Step.END_STREAM, Step.RESUME, Step.FRESH}
    if step is Step.OTHER:
        assert given_.allowed
        assert given_.others > 0
        assert given_.retried <= given_.unreached  # once an engine had it
        assert given_.unreached <= MOST_UNREACHED
        assert given_.budget or not is_charged(given_.trouble)
        assert given_.trouble not in {Trouble.FIRST_BYTE_TIMEOUT, Trouble.GAP_TIMEOUT}
    if step is Step.FRESH:
        assert given_.trouble is Trouble.STALE
        assert not given_.fresh  # so it ends


def test_a_response_that_is_kept_is_begun_once() -> None:
    responses, chat = CALLS[b"/v1/responses"], CALLS[b"/v1/chat/completions"]
    for kept in (b'{"store": true}', b'{"background":true}'):
        assert not may_be_repeated(Trouble.LOST, responses, kept)
        assert may_be_repeated(Trouble.REFUSED, responses, kept)
        assert may_be_repeated(Trouble.LOST, chat, kept)
    assert may_be_repeated(Trouble.LOST, responses, b'{"store": false}')


def test_a_closed_port_is_asked_again_before_long() -> None:
    health = None
    for number in range(8):
        health = struck(health, Evidence.REFUSED, "e", 100.0 * number)
    assert health is not None
    assert health.out_until == 705.0


def test_who_died_is_gone_once_its_port_refuses() -> None:
    """A death breaks the streams first; the refusals that follow within a second must be heard, without a longer time out."""
    lost = struck(None, Evidence.LOST, "e", 100.0)
    gone = struck(lost, Evidence.REFUSED, "e", 100.1)
    assert gone.evidence in UNREACHABLE
    assert (gone.out_until, gone.times) == (lost.out_until, lost.times)
    assert struck(gone, Evidence.LOST, "e", 100.2) == gone


def circumstances(trouble: Trouble, **changes: object) -> Circumstances:
    fields: dict[str, object] = {
        "begun": False, "retried": 0, "fresh": False, "others": 1, "budget": True, "allowed": True,
    }  # fmt: skip
    return Circumstances(trouble, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "step"),
    [
        (circumstances(Trouble.REFUSED), Step.OTHER),
        (circumstances(Trouble.REFUSED, budget=False), Step.OTHER),
        (circumstances(Trouble.LOST), Step.OTHER),
        (circumstances(Trouble.LOST, budget=False), Step.ANSWER),
        (circumstances(Trouble.LOST, allowed=False), Step.ANSWER),
        (circumstances(Trouble.LOST, others=0), Step.ANSWER),
        (circumstances(Trouble.STALE), Step.FRESH),
        (circumstances(Trouble.STALE, others=0, budget=False, allowed=False), Step.FRESH),
        (circumstances(Trouble.STALE, fresh=True), Step.OTHER),
        (circumstances(Trouble.BUSY), Step.OTHER),
        (circumstances(Trouble.BROKEN), Step.OTHER),
        (circumstances(Trouble.UNFINISHED), Step.OTHER),
        (circumstances(Trouble.FIRST_BYTE_TIMEOUT), Step.ANSWER),
        (circumstances(Trouble.MALFORMED), Step.ANSWER),
        (circumstances(Trouble.LOST, begun=True), Step.END_STREAM),
        # The second engine of a machine that is gone: the request has run once, or not at all.
        (circumstances(Trouble.REFUSED, retried=1, unreached=1), Step.OTHER),
        (circumstances(Trouble.REFUSED, retried=1, unreached=2), Step.OTHER),
        (circumstances(Trouble.LOST, retried=1, unreached=1), Step.OTHER),
        (circumstances(Trouble.LOST, retried=1), Step.ANSWER),
        (circumstances(Trouble.LOST, retried=2, unreached=1), Step.ANSWER),
        (circumstances(Trouble.REFUSED, retried=4, unreached=5), Step.ANSWER),
        (circumstances(Trouble.REFUSED, begun=True, resumable=True, resumed=2, unreached=1), Step.RESUME),
        (circumstances(Trouble.LOST, begun=True, resumable=True, resumed=2), Step.END_STREAM),
    ],
)
def test_the_table_of_retry(given_: Circumstances, step: Step) -> None:
    assert next_step(given_) is step


@given(st.lists(st.booleans(), max_size=500))
def test_retries_stay_within_a_tenth_and_the_reserve(fails: list[bool]) -> None:
    budget = Budget()
    retries = 0
    for failed in fails:
        budget = budget.earned()
        if failed and budget.open:
            budget = budget.spent()
            retries += 1
    assert retries <= budget.reserve + 0.1 * len(fails) + 1e-6
    assert 0 <= budget.left <= budget.reserve


def test_no_fault_of_the_request_counts_against_an_engine() -> None:
    assert evidence_of(Trouble.BUSY) is None
    assert evidence_of(Trouble.STALE) is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["strike", "probe", "over"]), st.sampled_from(Evidence), st.floats(0, 5)), max_size=40
    )
)
def test_the_time_out_is_bounded_and_doubles(steps: list[tuple[str, Evidence, float]]) -> None:
    now = 100.0
    health: Health | None = None
    for action, evidence, seconds in steps:
        now += seconds
        before = health
        if action == "strike":
            health = struck(health, evidence, "e", now)
            if before is not None and now < before.out_until:
                # Requests that were under way do not prolong it, but they may find that nobody is there at all.
                assert health == before._replace(evidence=health.evidence)
                assert health.evidence is before.evidence or health.evidence in UNREACHABLE
                assert evidence not in UNREACHABLE or health.evidence in UNREACHABLE
            assert health.out_until <= now + LONGEST_SECONDS
            if evidence in UNREACHABLE:
                assert health.is_out(now)
        elif health is not None and action == "probe" and health.is_due(now):
            health = probing(health)
            assert health.is_out(now)
            assert not health.is_due(now)  # one probe at a time
        elif health is not None and action == "over":
            health = probe_over(health)
        if health is not None:
            assert not (health.is_out(now) and health.is_due(now))


def test_connection_trouble_strikes_at_once_and_doubles() -> None:
    now, health, seconds = 0.0, None, []
    for _ in range(7):
        health = struck(health, Evidence.CONNECT_TIMEOUT, "e", now)
        seconds.append(health.out_until - now)
        now = health.out_until
        assert health.is_due(now)
        health = probing(health)
    assert seconds == [1, 2, 4, 8, 16, 30, 30]


def test_errors_need_two_within_the_window() -> None:
    for evidence in (Evidence.ERROR, Evidence.TIMEOUT):
        once = struck(None, evidence, "e", 0.0)
        assert not once.is_out(0.0)
        assert not struck(once, evidence, "e", WINDOW_SECONDS + 1).is_out(WINDOW_SECONDS + 1)
        assert struck(once, evidence, "e", WINDOW_SECONDS - 1).is_out(WINDOW_SECONDS - 1)


def test_a_failed_probe_of_any_kind_puts_out_again() -> None:
    out = struck(None, Evidence.REFUSED, "e", 0.0)
    again = struck(probing(out), Evidence.ERROR, "e", 1.0)
    assert again.times == 2
    assert again.is_out(2.9)


def test_another_start_of_the_engine_has_a_clean_slate() -> None:
    health = None
    for _ in range(3):
        health = struck(health, Evidence.LOST, "e1", 0.0 if health is None else health.out_until)
    assert health is not None
    assert struck(health, Evidence.LOST, "e2", 100.0).times == 1


def test_every_trouble_has_its_place() -> None:
    for trouble, begun in itertools.product(Trouble, (True, False)):
        assert next_step(circumstances(trouble, begun=begun)) in Step
        assert evidence_of(trouble) is None or evidence_of(trouble) in Evidence
