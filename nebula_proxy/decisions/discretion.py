"""What an engine says of a failure, without what it repeats of the prompt: logs, records and traces hold no prompt.

An error message may quote what it complains about. So whatever of it stands in the request as well is left out: long
words, and several short ones in a row. The model's name stands in the request too and may be said.
"""

#: Characters of a message that are kept.
KEPT = 300
#: A body that is larger is not compared, then nothing is said.
COMPARED_BYTES = 1024 * 1024
_LONG = 10
_ROW = 3
_LEFT_OUT = "…"


def discreet(detail: str, body: bytes, model: str | None) -> str:
    """The words that may be kept."""
    words = detail[:KEPT].split()
    if not words or not body:
        return " ".join(words)
    if len(body) > COMPARED_BYTES:
        return "(the engine's words are withheld: the request is too large to compare them with)"
    hidden = [False] * len(words)
    for place, word in enumerate(words):
        bare = word.strip("'\"`.,:;()[]{}<>")
        if len(bare) >= _LONG and bare != model and _encoded(bare) in body:
            hidden[place] = True
        row = words[place : place + _ROW]
        if len(row) == _ROW and _encoded(" ".join(row)) in body:
            hidden[place : place + _ROW] = [True] * _ROW
    said: list[str] = []
    for word, left_out in zip(words, hidden, strict=True):
        if not left_out:
            said.append(word)
        elif not said or said[-1] != _LEFT_OUT:
            said.append(_LEFT_OUT)
    return " ".join(said)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
