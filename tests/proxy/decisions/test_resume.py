"""Where a cut stream may go on: the text put together is that of an uncut one, or there is no resume."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.openai import Dialect
from nebula_proxy.decisions.calls import CALLS, Call
from nebula_proxy.decisions.resume import (
    LONGEST_BODY,
    Cut,
    Refused,
    Terms,
    asking,
    continuation,
    is_complete,
    joined,
    safe_point,
    terms_of,
)
from tests.support.token_engine import FIRST_ID, Emission, emissions, whole

CHAT = CALLS[b"/v1/chat/completions"]
TEXT = CALLS[b"/v1/completions"]


def terms(call: Call = CHAT, **fields: Any) -> Terms | Refused:
    body: dict[str, Any] = {"model": "m", "stream": True}
    body |= {"messages": [{"role": "user", "content": "hi"}]} if call is CHAT else {"prompt": "hi"}
    return terms_of(call, json.dumps(body | fields).encode())


def sure(found: Terms | Refused) -> Terms:
    assert isinstance(found, Terms)
    return found


#: Answers as bytes, cut anywhere into tokens: also inside characters of two to four bytes.
def _tokens(text: str, sizes: list[int]) -> list[bytes]:
    raw = text.encode()
    made = []
    for size in sizes:
        if raw:
            made.append(raw[:size])
            raw = raw[size:]
    return [*made, raw] if raw else made


_answers = st.builds(
    _tokens, st.text(alphabet="ab \né€𝄞\n", min_size=1, max_size=40), st.lists(st.integers(1, 5), max_size=60)
)


@given(
    tokens=_answers,
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    again=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    stops=st.lists(st.text(alphabet="ab é", min_size=1, max_size=4), max_size=2),
    limit=st.integers(1, 60),
    cut=st.integers(0, 60),
    greedy=st.booleans(),
)
def test_a_resumed_text_is_the_uncut_one(
    tokens: list[bytes],
    groups: list[int],
    again: list[int],
    stops: list[str],
    limit: int,
    cut: int,
    greedy: bool,
) -> None:
    found = sure(terms(max_tokens=limit, temperature=0 if greedy else 1, stop=stops or None))
    uncut = emissions(tokens, 0, limit, groups, stops)
    sent = uncut[: min(cut, len(uncut) - 1)]
    count = sum(len(each.ids) for each in sent)
    weighed: list[tuple[int, str]] = []
    for each in sent:
        together = joined(weighed[-1] if weighed else None, len(each.ids), each.text)
        weighed[-1 if together else len(weighed) :] = [together or (len(each.ids), each.text)]
    point = safe_point(found, count, weighed[-found.recent :], from_start=len(weighed) < found.recent)
    if isinstance(point, Refused):
        assert not greedy
        return
    assert greedy or not point.overlap
    left = limit - point.kept
    assert not is_complete(found, point.kept)
    rest = emissions(tokens, point.kept, left, again, stops)
    text = whole(rest)
    shown = whole(sent)
    if text.startswith(point.overlap):
        assert shown + text[len(point.overlap) :] == whole(uncut)
        assert (rest[-1].finish, rest[-1].stop) == (uncut[-1].finish, uncut[-1].stop)
        assert point.kept + sum(len(each.ids) for each in rest) == sum(len(each.ids) for each in uncut)
    else:
        # Only where the point before the overlap was itself in half a character: seen, and never passed on.
        assert max(groups) > 1


def test_a_token_with_a_text_is_a_safe_point() -> None:
    sampled = sure(terms(temperature=0.7))
    assert safe_point(sampled, 5, [(1, "a"), (1, "b")], from_start=False) == Cut(5, "")
    # The last two wait for the rest of a character: they are drawn anew.
    assert safe_point(sampled, 5, [(1, "a"), (1, ""), (1, "")], from_start=False) == Cut(3, "")
    assert isinstance(safe_point(sampled, 5, [(1, "a"), (2, "bc")], from_start=False), Refused)
    greedy = sure(terms(temperature=0))
    assert safe_point(greedy, 5, [(1, "a"), (2, "bc"), (1, "")], from_start=False) == Cut(2, "bc")
    # Several at once again and again: from where it is known, else from the latest, to be proved by its text.
    assert safe_point(greedy, 9, [(1, "a"), (2, "bc"), (2, "de")], from_start=False) == Cut(5, "bcde")
    assert safe_point(greedy, 9, [(2, "bc"), (2, "de")], from_start=False) == Cut(7, "de")
    assert safe_point(greedy, 4, [(2, "bc"), (2, "de")], from_start=True) == Cut(0, "bcde")


def test_without_a_text_it_begins_at_the_start_or_not_at_all() -> None:
    found = sure(terms())
    assert safe_point(found, 2, [(1, ""), (1, "")], from_start=True) == Cut(0, "")
    assert isinstance(safe_point(found, 40, [(1, "")] * 16, from_start=False), Refused)


def test_stop_strings_hold_text_back() -> None:
    found = sure(terms(stop=["END."], temperature=0))
    assert found.lag == 3
    sent = [Emission([1], ""), Emission([2], "a"), Emission([3], "bcd"), Emission([4], "efgh")]
    weighed = [(len(each.ids), each.text) for each in sent]
    # Behind the second chunk the engine had made 1 + 3 characters, all of which were shown in the end.
    assert safe_point(found, 4, weighed, from_start=True) == Cut(3, "h")
    assert isinstance(safe_point(sure(terms(stop=["END."])), 4, weighed, from_start=True), Refused)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7, "seed": 3, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0},
        {"logprobs": None, "stop": None, "user": "u", "metadata": {"a": "b"}, "chat_template_kwargs": {"x": 1}},
        {"stop": "\n", "include_stop_str_in_output": True},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 'say "type": "image"'}]}]},
    ],
)
def test_what_can_be_resumed(fields: dict[str, Any]) -> None:
    assert isinstance(terms(**fields), Terms)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"logprobs": 0},
        {"top_logprobs": 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"bad_words": ["x"]},
        {"echo": True},
        {"return_token_ids": True},
        {"stop": ["x" * 80]},
        {"stop": ["ab"], "include_stop_str_in_output": True},
        {"some_new_field": 1},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
        {"max_tokens": "many"},
        {"stop": 5},
    ],
)
def test_what_cannot(fields: dict[str, Any]) -> None:
    assert isinstance(terms(**fields), Refused)


def test_other_calls_and_prompts_cannot() -> None:
    assert isinstance(terms(TEXT, prompt=["a", "b"]), Refused)
    assert isinstance(terms(TEXT, prompt=[[1], [2]]), Refused)
    assert isinstance(terms(TEXT, prompt=[1, 2]), Terms)
    assert isinstance(terms(TEXT, prompt=["a"]), Terms)
    assert isinstance(terms_of(CALLS[b"/v1/messages"], b"{}"), Refused)
    assert isinstance(terms_of(Call(b"/v1/responses", Dialect.RESPONSES), b"{}"), Refused)
    assert isinstance(terms_of(CHAT, b'{"model":"m","x":"%b"}' % (b"y" * LONGEST_BODY)), Refused)
    assert isinstance(terms_of(CHAT, b"[1]"), Refused)


def test_the_body_asks_and_stays_the_same_otherwise() -> None:
    body = b' {"model": "m", "stream": true}'
    assert json.loads(asking(body)) == json.loads(body) | {"return_token_ids": True}


def test_a_continuation_counts_what_is_left() -> None:
    fields = {"max_completion_tokens": 10, "min_tokens": 5, "temperature": 0.5, "seed": 9, "user": "u"}
    found = sure(terms(**fields, messages=[{"role": "user", "content": "secret"}], stop=["\n"]))
    made = continuation(found, [1, 2], [FIRST_ID, FIRST_ID + 1], None)
    assert isinstance(made, bytes)
    assert json.loads(made) == {
        "model": "m",
        "temperature": 0.5,
        "seed": 9,
        "user": "u",
        "stop": ["\n"],
        "prompt": [1, 2, FIRST_ID, FIRST_ID + 1],
        "max_tokens": 8,
        "min_tokens": 3,
        "stream": True,
        "return_token_ids": True,
    }


def test_without_a_limit_the_context_says() -> None:
    found = sure(terms())
    assert isinstance(continuation(found, [1], [2], None), Refused)
    made = continuation(found, [1], [2], 100)
    assert isinstance(made, bytes)
    assert json.loads(made)["max_tokens"] == 98
    assert isinstance(continuation(found, [1], [2], 2), Refused)
    assert sure(terms(TEXT)).limit == 16
