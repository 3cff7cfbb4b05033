"""What may be kept of an engine's words: nothing that stands in the prompt."""

import json

from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.discretion import COMPARED_BYTES, discreet

BODY = json.dumps(
    {"model": "meta/Llama-3.3-70B", "messages": [{"role": "user", "content": "my cat is ill canary-0123456789"}]}
).encode()


def test_examples() -> None:
    assert discreet("EngineCore encountered an issue", BODY, "m") == "EngineCore encountered an issue"
    assert discreet("cannot parse 'canary-0123456789' here", BODY, "m") == "cannot parse … here"
    assert discreet("bad text: my cat is ill indeed", BODY, "m") == "bad text: … indeed"
    name = "meta/Llama-3.3-70B"
    assert discreet(f"no model '{name}'", BODY, name) == f"no model '{name}'"
    assert discreet("", BODY, None) == ""
    assert discreet("it broke", b"", None) == "it broke"
    assert "withheld" in discreet("it broke", b"x" * (COMPARED_BYTES + 1), None)


@given(st.text("ab cd-éß", min_size=1, max_size=60), st.text("xyz ", max_size=10), st.text("xyz ", max_size=10))
def test_no_row_of_the_prompt_is_left(prompt: str, before: str, after: str) -> None:
    said = discreet(
        f"{before} {prompt} {after}", json.dumps({"p": " ".join(prompt.split())}, ensure_ascii=False).encode(), None
    )
    words = prompt.split()
    for place in range(len(words) - 2):
        assert " ".join(words[place : place + 3]) not in said
    for word in words:
        if len(word.strip("'\"`.,:;()[]{}<>")) >= 10:
            assert word not in said.split()
