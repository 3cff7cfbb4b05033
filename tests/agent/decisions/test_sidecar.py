"""The files through which an agent and an engine's container agree."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_agent.decisions.sidecar import Ran, epoch_of, read_ended, script

words = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)


@given(st.lists(words, max_size=4), st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), words, max_size=2))
@settings(max_examples=60, deadline=None)
def test_every_word_reaches_the_program_as_it_is(arguments, environment):
    """Whatever a deployment says, the shell reads nothing of it."""
    environment = {f"X_{name}": value for name, value in environment.items()}
    show = ["/usr/bin/env", "-0"] if not arguments else ["printf", "%s\\0", *arguments]
    done = subprocess.run(
        ["sh", "-c", script("e1", show, environment)], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    found = done.stdout.decode("utf-8", "surrogateescape").split("\0")
    if arguments:
        assert found == [*arguments, ""]
    else:
        assert {f"{name}={value}" for name, value in environment.items()} <= set(found)


def test_a_script_says_which_start_it_is():
    assert epoch_of(script("abc123", ["true"], {})) == "abc123"
    assert epoch_of("#!/bin/sh\nexec true\n") is None
    assert epoch_of("") is None


@pytest.mark.parametrize(
    ("text", "ran"),
    [
        ("e1 0\n", Ran("e1", 0)),
        ("e1 7\n", Ran("e1", 7)),
        ("e1 137\n", Ran("e1", -9)),
        ("e1 lost\n", Ran("e1", None)),
        ("", None),
        ("e1", None),
    ],
)
def test_how_it_ended_is_read(text, ran):
    assert read_ended(text) == ran
