"""The evidence of a hang: bounded in every part, clean, and never more files than there should be."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.evidence import (
    KEPT_PER_NODE,
    KEPT_PER_REPLICA,
    MOST_CHARACTERS,
    Counted,
    ProcessState,
    bundle,
    counters_table,
    file_name,
    processes_text,
    superfluous,
)
from nebula_core.security.text import is_clean


def test_what_it_looks_like():
    counted = [Counted(0.0, 3, 1, 0.5, (10.0, 20.0)), Counted(1.0, None, None, None, ())]
    table = counters_table(counted, 2.0).splitlines()
    assert table[1].split() == ["2s", "3", "1", "0.500", "10", "20"]
    assert table[2].split() == ["1s", "–", "–", "–"]
    states = [ProcessState(7, "VLLM::EngineCor", "D", "nvidia_ioctl", "State: D", "[<0>] nvidia_ioctl", "Thread 7")]
    text = processes_text(states)
    assert text.startswith("pid 7 VLLM::EngineCor state D waits in nvidia_ioctl")
    assert "Thread 7" in text
    whole = bundle("chat-r1 on n1: frozen", [("counters", "\n".join(table)), ("gpus", "")])
    assert whole.startswith("chat-r1 on n1: frozen\n\n== counters\n")
    assert "== gpus\n(nothing)" in whole


@given(st.text(max_size=50), st.lists(st.tuples(st.sampled_from("abc"), st.text()), max_size=4), st.integers(1, 4000))
def test_it_is_clean_and_bounded(title, sections, times):
    text = bundle(title, [(name, part * times) for name, part in sections])
    assert len(text) <= MOST_CHARACTERS + 100
    assert all(is_clean(line) for line in text.split("\n"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a-r1", "b-r1", "c-r2", "d-r9"]), st.integers(0, 10**6)), unique=True, max_size=80
    )
)
def test_old_ones_go_first_and_few_are_kept(made):
    names = [file_name(replica, 1.7e9 + at * 60, "epoch") for replica, at in made]
    for replica in {replica for replica, _ in made}:
        gone = set(superfluous(names, replica))
        kept = [name for name in names if name not in gone]
        own = [name for name in kept if name.startswith(f"{replica}@")]
        assert len(own) <= KEPT_PER_REPLICA
        assert len(kept) <= KEPT_PER_NODE
        ages = sorted(name.partition("@")[2] for name in names if name.startswith(f"{replica}@"))
        assert sorted(name.partition("@")[2] for name in own) == (ages[-len(own) :] if own else [])
