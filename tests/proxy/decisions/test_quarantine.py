"""A body that was there when engines died is refused; what speaks for it takes that back."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.quarantine import (
    CROWD,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    MEMORY_SECONDS,
    Death,
    refused_until,
    with_death,
)
from nebula_proxy.traffic.quarantine import MOST, Quarantine

DEATHS = st.lists(
    st.builds(
        Death,
        replica=st.sampled_from(["r0", "r1", "r2"]),
        engine_epoch=st.sampled_from(["a", "b"]),
        at=st.floats(0, 2000),
        company=st.integers(1, 400),
    ),
    max_size=8,
)


def death(replica: str, at: float = 0.0, company: int = 1) -> Death:
    return Death(replica, "e1", at, company)


@given(DEATHS)
def test_the_laws_of_quarantine(deaths: list[Death]) -> None:
    held: tuple[Death, ...] = ()
    for each in sorted(deaths, key=lambda each: each.at):
        held = with_death(held, each)
    assert len({(each.replica, each.engine_epoch) for each in held}) == len(held)
    until = refused_until(held)
    if until is None:
        return
    latest = max(each.at for each in held)
    near = [each for each in held if latest - each.at <= MEMORY_SECONDS]
    assert len(near) >= 2
    assert len(near) >= 3 or all(each.company <= CROWD for each in near)
    assert latest + FIRST_SECONDS <= until <= latest + LONGEST_SECONDS


def test_one_engine_dies_once() -> None:
    assert refused_until(with_death(with_death((), death("r0")), death("r0", 1.0))) is None
    assert refused_until([death("r0"), death("r1", 5.0)]) == 5.0 + FIRST_SECONDS
    assert refused_until([death("r0"), death("r1", MEMORY_SECONDS + 1)]) is None
    assert refused_until([death("r0"), death("r1"), death("r2", 5.0)]) == 5.0 + 2 * FIRST_SECONDS


def test_in_a_crowd_it_takes_three() -> None:
    crowd = [death(f"r{number}", company=200) for number in range(3)]
    assert refused_until(crowd[:2]) is None
    assert refused_until(crowd) is not None
    assert refused_until([crowd[0], death("r1")]) is None


def test_what_is_held_is_bounded_and_forgotten() -> None:
    quarantine = Quarantine(lambda _: False)
    assert not quarantine.held
    for number in range(MOST + 10):
        quarantine.died(b"%d" % number, death("r0"))
    assert len(quarantine) == MOST
    quarantine.sweep(MEMORY_SECONDS + 1)
    assert not quarantine.held
    assert quarantine.refuses(b"5", 0.0) is None


def test_an_answer_or_a_living_engine_acquits() -> None:
    living: set[str] = set()
    quarantine = Quarantine(lambda each: each.replica in living)
    for replica in ("r0", "r1"):
        quarantine.died(b"bad", death(replica))
        quarantine.died(b"fine", death(replica))
    assert quarantine.refuses(b"bad", 1.0) == FIRST_SECONDS - 1.0
    assert quarantine.refuses(b"bat", 1.0) is None
    quarantine.served(b"fine", 1.0)
    assert quarantine.refuses(b"fine", 1.0) is None
    living.add("r1")
    assert quarantine.refuses(b"bad", 1.0) is None
    living.clear()
    assert quarantine.refuses(b"bad", 1.0) is None  # that death is taken back for good
