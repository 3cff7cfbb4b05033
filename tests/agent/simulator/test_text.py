"""The words of the simulated engine: reversible tokens, answers that depend on their tokens alone, stops and bytes."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.simulator.detokenizer import Detokenizer
from nebula_agent.simulator.reply import Continuation, answer_start
from nebula_agent.simulator.tokenizer import tokenizer

TOKENS = tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def chat(content: str) -> list[int]:
    return TOKENS.encode(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")


def answer(prompt: list[int], limit: int = 400, **options) -> list[int]:
    continuation = Continuation(prompt, **options)
    tokens: list[int] = []
    while len(tokens) < limit and (token := continuation.next_token()) != TOKENS.end_of_turn:
        tokens.append(token)
    return tokens


@given(TEXTS)
def test_every_text_comes_back(text: str) -> None:
    tokens = TOKENS.encode(text)
    assert TOKENS.decode(tokens) == text
    assert all(0 <= token < TOKENS.size for token in tokens)


def test_ids_are_stable():
    """Ids are compared across processes and releases: append to the corpus, never reorder it, then change these."""
    table = "\x00".join(TOKENS.token_text(token) for token in range(TOKENS.size))
    assert (TOKENS.size, zlib.crc32(table.encode())) == (1998, 3323270593)


def test_specials_are_single_tokens_and_vanish_when_decoded():
    tokens = TOKENS.encode("a<|im_end|>b")
    assert tokens.count(TOKENS.end_of_turn) == 1
    assert TOKENS.decode(tokens) == "ab"
    assert TOKENS.decode(tokens, keep_special=True) == "a<|im_end|>b"


def test_prompts_have_about_as_many_tokens_as_with_a_real_tokenizer():
    text = "Please write a short story about a small house near the river and explain why people come back to it."
    assert 1.0 <= len(TOKENS.encode(text)) / len(text.split()) <= 1.6


@given(TEXTS, st.integers(0, 199), st.one_of(st.none(), st.integers(0, 9)), st.booleans())
def test_an_answer_cut_anywhere_goes_on_with_the_same_tokens(content, cut, seed, ignore_end):
    prompt = chat(content)
    options = {"seed": seed, "ignore_end": ignore_end}
    whole = answer(prompt, 200, **options)
    cut = min(cut, len(whole))
    assert whole[:cut] + answer(prompt + whole[:cut], 200 - cut, **options) == whole


@given(st.lists(st.integers(0, TOKENS.size - 4), min_size=1, max_size=30), st.integers(0, 60))
def test_a_completion_cut_anywhere_goes_on_with_the_same_tokens(prompt, cut):
    whole = answer(prompt, 60, ignore_end=True)
    assert whole[:cut] + answer(prompt + whole[:cut], 60 - cut, ignore_end=True) == whole


def test_answers_have_a_natural_length_and_say_that_they_are_simulated():
    answers = [answer(chat(f"question {number}")) for number in range(60)]
    assert all(40 <= len(tokens) <= 260 for tokens in answers)
    assert len({tuple(tokens) for tokens in answers}) == len(answers)
    assert all("simulated" in TOKENS.decode(tokens) for tokens in answers)
    texts = [TOKENS.decode(tokens) for tokens in answers]
    assert any("```" in text for text in texts)
    assert any("\n- " in text for text in texts)
    assert all(text[-1] in ".`s|)e" or text[-1].isalnum() for text in texts)


def test_min_tokens_and_ignored_ends_lengthen_an_answer():
    prompt = chat("hello")
    natural = answer(prompt)
    longer = answer(prompt, min_tokens=len(natural) + 1)
    assert longer[: len(natural)] == natural
    assert len(longer) > len(natural)
    assert len(answer(prompt, 400, ignore_end=True)) == 400


def test_a_script_replaces_the_text_and_is_continued_too():
    prompt, script = chat("json please"), TOKENS.encode('{"ok": true}')
    assert answer(prompt, script=script) == script
    assert answer(prompt + script[:3], script=script) == script[3:]


def test_only_an_open_assistant_turn_is_an_answer():
    assert answer_start(chat("x")) == len(chat("x"))
    assert answer_start(chat("x") + TOKENS.encode("some words")) == len(chat("x"))
    assert answer_start(TOKENS.encode("no chat at all")) is None
    assert answer_start([*chat("x"), TOKENS.end_of_turn]) is None
    assert answer_start(TOKENS.encode("<|im_start|>user\nhalf a question")) is None


@given(TEXTS, st.lists(st.integers(1, 5)))
def test_text_in_pieces_is_the_text_in_one(text, sizes):
    tokens = TOKENS.encode(text)
    detokenizer, pieces = Detokenizer(), []
    for size in sizes:
        pieces.append(detokenizer.feed(tokens[:size], last=False).text)
        tokens = tokens[size:]
    pieces.append(detokenizer.feed(tokens, last=True).text)
    assert "".join(pieces) == text


@given(st.text("abc ", max_size=40), st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_is_found_however_the_text_is_cut(text, stops):
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    detokenizer, out = Detokenizer(stops), ""
    for token in TOKENS.encode(text):
        delta = detokenizer.feed([token], last=False)
        out += delta.text
        if delta.stop is not None:
            # One token may complete two stop strings at once; the earlier place wins.
            assert text.startswith(out + delta.stop)
            assert out == text[: min(found)] or len(out) >= min(found)
            return
    out += detokenizer.feed([], last=True).text
    assert not found
    assert out == text


def test_an_included_stop_string_stays():
    delta = Detokenizer(["simulated"], include_stop=True).feed(TOKENS.encode("a simulated engine"), last=False)
    assert (delta.text, delta.stop) == ("a simulated", "simulated")


def test_a_character_cut_in_two_waits_for_its_other_half():
    first, second = "\u00e9".encode()
    detokenizer = Detokenizer()
    assert detokenizer.feed([first], last=False).text == ""
    assert detokenizer.feed([second], last=False).text == "\u00e9"
    assert Detokenizer().feed([first], last=True).text == "\ufffd"


@pytest.mark.parametrize("temperature_seed", [1, 2])
def test_seeds_choose_other_texts(temperature_seed):
    prompt = chat("dice")
    assert answer(prompt, seed=temperature_seed) != answer(prompt)
    assert answer(prompt, seed=temperature_seed) == answer(prompt, seed=temperature_seed)
