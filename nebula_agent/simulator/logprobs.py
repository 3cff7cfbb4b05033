"""Log probabilities of tokens nobody computed: made up, but the same for the same token at the same place."""

from nebula_agent.simulator.reply import mix
from nebula_agent.simulator.tokenizer import tokenizer


def made_up(token: int, place: int, alternatives: int) -> list[tuple[int, float]]:
    """The token and its alternatives, most likely first: (token, log probability)."""
    chosen = -(mix(token, place) % 4000) / 4000.0
    size = tokenizer().end_of_text
    others = [
        (mix(token, place * 31 + number) % size, chosen - number - (mix(place, number) % 1000) / 1000.0)
        for number in range(1, alternatives)
    ]
    return [(token, chosen), *others]


def chat_logprobs(tokens: list[int], start: int, alternatives: int) -> dict[str, object]:
    """`choices[].logprobs` of a chat for tokens that begin at place `start` of the answer."""
    content = []
    for offset, token in enumerate(tokens):
        ranked = made_up(token, start + offset, max(alternatives, 1))
        entry = _chat_entry(*ranked[0])
        entry["top_logprobs"] = [_chat_entry(*one) for one in ranked[:alternatives]]
        content.append(entry)
    return {"content": content}


def _chat_entry(token: int, logprob: float) -> dict[str, object]:
    data = tokenizer().token_bytes(token, keep_special=True)
    return {"token": tokenizer().token_text(token), "logprob": logprob, "bytes": list(data)}


def completion_logprobs(
    tokens: list[int], start: int, alternatives: int, text_offset: int, *, first_unknown: bool = False
) -> dict[str, object]:
    """`choices[].logprobs` of a completion; the very first token of a prompt has none."""
    vocabulary = tokenizer()
    offsets: list[int] = []
    names: list[str] = []
    chosen: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for offset, token in enumerate(tokens):
        name = vocabulary.token_text(token)
        offsets.append(text_offset)
        names.append(name)
        text_offset += len(name)
        if first_unknown and offset == 0:
            chosen.append(None)
            tops.append(None)
            continue
        ranked = made_up(token, start + offset, max(alternatives, 1))
        chosen.append(ranked[0][1])
        tops.append({vocabulary.token_text(one): logprob for one, logprob in ranked})
    return {"text_offset": offsets, "token_logprobs": chosen, "tokens": names, "top_logprobs": tops}
