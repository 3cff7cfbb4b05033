"""What is a fact in a reply and what an accident: shapes of JSON, rows of SSE frames, and the captured ones to compare."""

import json
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

CAPTURES = Path(__file__).parent / "captures"


def shape(value: Any) -> Any:
    """Names in their order and the kind of each value; a list is the row of its distinct shapes."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return ["list", *[kind for kind, _ in groupby(shape(inner) for inner in value)]]
    return "null" if value is None else type(value).__name__


@dataclass(frozen=True)
class Frame:
    event: str | None
    data: Any


def frames(stream: str) -> list[Frame]:
    """The frames of an SSE body; data that is no JSON (`[DONE]`) stays text."""
    found = []
    for block in filter(str.strip, stream.split("\n\n")):
        lines = block.strip("\n").split("\n")
        event = next((line[7:] for line in lines if line.startswith("event: ")), None)
        data = next(line[6:] for line in lines if line.startswith("data: "))
        found.append(Frame(event, data if data == "[DONE]" else json.loads(data)))
        assert all(line.startswith(("event: ", "data: ")) for line in lines), block
    return found


def stream_shape(stream: str) -> list[Any]:
    """The shapes of the frames; neighbours of one shape count once, since a chunk is not a token."""
    seen = [(frame.event, shape(frame.data) if frame.data != "[DONE]" else "[DONE]") for frame in frames(stream)]
    return [kind for kind, _ in groupby(seen)]


@dataclass(frozen=True)
class Capture:
    """One captured request and its reply."""

    path: str
    request: dict[str, Any] | None
    status: int
    headers: list[tuple[str, str]]
    body: str


def captures(name: str) -> list[Capture]:
    """All of a file, in order. Bodies that were elided in the file are None."""
    text = (CAPTURES / f"vllm_{name}.txt").read_bytes().decode()
    found = []
    for part in re.split(r"^(?=###? (?:GET|POST) )", text, flags=re.MULTILINE)[1:]:
        first, rest = part.split("\n", 1)
        note, head = re.split(r"(?=^HTTP/1.1)", rest, maxsplit=1, flags=re.MULTILINE)
        head, body = head.split("\r\n\r\n", 1)
        body = body.partition("\n#####")[0]
        status, *lines = head.split("\r\n")
        given = note.removeprefix("> ").strip()
        try:
            request = json.loads(given) if given else None
        except json.JSONDecodeError:
            request = None
        found.append(
            Capture(
                path=first.split(" ")[2],
                request=request,
                status=int(status.split(" ")[1]),
                headers=[tuple(line.split(": ", 1)) for line in lines],  # type: ignore[misc]
                body=body,
            )
        )
    return found


def families(exposition: str) -> dict[str, tuple[str, frozenset[tuple[str, ...]]]]:
    """Each metric's type and the sets of label names its series have."""
    return {
        family.name: (
            family.type,
            frozenset((sample.name, *sorted(sample.labels)) for sample in family.samples),
        )
        for family in text_string_to_metric_families(exposition)
    }


def samples(exposition: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every series and its value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def total(exposition: str, name: str, **labels: str) -> float:
    """The sum of the series of this name that have these labels; fails if there is none."""
    values = [
        value
        for (series, given), value in samples(exposition).items()
        if series == name and set(labels.items()) <= set(given)
    ]
    assert values, f"no series {name} {labels}"
    return sum(values)
