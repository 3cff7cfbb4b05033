"""When a process turns requests away to save those it has."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.overload_guard import (
    LATE_TIMES,
    NO_TROUBLE,
    RESERVE,
    Cause,
    GuardLimits,
    Verdict,
    Vitals,
    judge,
)

LIMITS = GuardLimits(descriptors=1000, memory_bytes=1000, loop_lag_seconds=0.25)
VITALS = st.builds(
    Vitals,
    descriptors=st.none() | st.integers(0, 1100),
    memory_bytes=st.none() | st.integers(0, 1100),
    loop_lag_seconds=st.none() | st.floats(0, 3),
)


def after(*looks: Vitals, limits: GuardLimits = LIMITS) -> Verdict:
    verdict = NO_TROUBLE
    for vitals in looks:
        verdict = judge(verdict, vitals, limits)
    return verdict


@given(st.lists(VITALS, max_size=20))
def test_unknown_is_no_reason_and_calm_ends_everything(looks: list[Vitals]) -> None:
    calm = Vitals(0, 0, 0.0)
    assert after(*looks, *[calm] * (LATE_TIMES + 1)).shed is None
    assert after(*looks, limits=GuardLimits(loop_lag_seconds=None)) == NO_TROUBLE
    assert after(*[Vitals()] * 5) == NO_TROUBLE


@given(VITALS, VITALS)
def test_what_closes_connections_sheds_as_well(first: Vitals, second: Vitals) -> None:
    verdict = after(first, second)
    assert verdict.close is None or verdict.shed is not None


def test_steps_are_taken_back_with_slack() -> None:
    assert after(Vitals(descriptors=799)).shed is None
    assert after(Vitals(descriptors=800)).shed is Cause.DESCRIPTORS
    assert after(Vitals(descriptors=800), Vitals(descriptors=751)).shed is Cause.DESCRIPTORS
    assert after(Vitals(descriptors=800), Vitals(descriptors=749)).shed is None
    assert after(Vitals(memory_bytes=850)).shed is Cause.MEMORY
    assert after(Vitals(memory_bytes=949)).close is None
    assert after(Vitals(memory_bytes=950)).close is Cause.MEMORY


def test_the_reserve_is_kept_where_the_limit_is_small() -> None:
    small = GuardLimits(descriptors=64)
    assert after(Vitals(descriptors=64 - RESERVE), limits=small).close is Cause.DESCRIPTORS
    assert after(Vitals(descriptors=64 - RESERVE - 1), limits=small).close is None


def test_one_late_sweep_is_nothing_and_three_are() -> None:
    late, good = Vitals(loop_lag_seconds=0.5), Vitals(loop_lag_seconds=0.01)
    assert after(late, late, good, late, late).shed is None
    assert after(late, late, late).shed is Cause.LOOP
    assert after(late, late, late, good, good).shed is Cause.LOOP
    assert after(late, late, late, good, good, good).shed is None
