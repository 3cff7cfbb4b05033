"""Which requests leave a record."""

from typing import Any

from nebula_proxy.decisions.sampling import Sampling, kept_because

ORDINARY: dict[str, Any] = {
    "status": 200,
    "broken": False,
    "attempts": 1,
    "retried": 0,
    "resumes": 0,
    "first_seconds": 0.1,
    "person": False,
    "roll": 0.5,
    "floor_left": 0,
}


def reason(sampling: Sampling | None = None, **changes: Any) -> str | None:
    return kept_because(sampling or Sampling(), **(ORDINARY | changes))


def test_ordinary_requests_are_sampled_and_the_others_always_kept() -> None:
    assert reason() is None
    assert reason(roll=0.01) == "sample"
    assert reason(floor_left=1) == "floor"
    assert reason(person=True) == "person"
    assert reason(first_seconds=10.1) == "slow"
    assert reason(retried=1) == "retried"
    assert reason(status=502, broken=True) == "error"
    assert reason(status=500) == "error"
    assert reason(resumes=1, status=502, broken=True) == "resumed"
    assert reason(attempts=0, status=429) == "rejected"
    assert reason(attempts=0, status=503) == "rejected"
    # The client's own mistakes, and clients that leave, are ordinary.
    assert reason(status=400) is None
    assert reason(status=499) is None
    assert reason(Sampling(ratio=0.0), roll=0.0) is None
    assert reason(Sampling(ratio=1.0), roll=0.999) == "sample"
