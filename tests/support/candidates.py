"""Candidates for the tests of routing."""

from hypothesis import strategies as st

from nebula_proxy.decisions.candidates import Candidate, Standing


def candidate(replica: str = "r0", **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "replica": replica,
        "standing": Standing.SOUND,
        "inflight": 0,
        "elsewhere": 0,
        "waiting": 0,
        "kv_cache_usage": 0.1,
        "sample_age": 0.5,
        "max_waiting": 8,
        "max_kv_cache_usage": 0.95,
        "max_inflight": 256,
    }
    return Candidate(**(fields | changes))  # type: ignore[arg-type]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        replica=st.text("abcdef", min_size=1, max_size=6),
        standing=st.sampled_from(Standing),
        inflight=st.just(0),
        elsewhere=st.integers(0, 10),
        waiting=st.none() | st.integers(0, 12),
        kv_cache_usage=st.none() | st.floats(0, 1),
        sample_age=st.floats(0, 10),
        max_waiting=st.integers(1, 10),
        max_kv_cache_usage=st.floats(0.5, 1),
        max_inflight=st.integers(1, 20),
        running=st.none() | st.integers(0, 20),
        inflight_at_sample=st.integers(0, 5),
        unread_elsewhere=st.integers(0, 100_000),
        rivals=st.integers(0, 3),
        weight=st.just(1.0) | st.floats(0.1, 1.0) | st.just(0.0),
    ),
    max_size=8,
    unique_by=lambda each: each.replica,
)
