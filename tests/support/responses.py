"""The grammar of a Responses stream, as OpenAI's API reference tells it: every node announced, filled, closed, in order."""

import json
from typing import Any

FINAL = {"response.completed", "response.incomplete", "response.failed"}
_PARTS = {"output_text": "text", "reasoning_text": "text", "refusal": "refusal"}


def parse(raw: bytes) -> list[dict[str, Any]]:
    """The events; each `event:` line must name the type in its data."""
    events = []
    for block in raw.split(b"\n\n"):
        if not block:
            continue
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    return events


def check_grammar(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Asserts the grammar of a whole stream and gives the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = len(events) - 1
    if events[last]["type"] == "error":
        last -= 1
        assert events[last]["type"] == "response.failed"
    final = events[last]
    assert final["type"] in FINAL
    assert final["response"]["status"] == final["type"].removeprefix("response.")
    assert {event["response"]["id"] for event in events if "response" in event} == {final["response"]["id"]}
    items: dict[int, dict[str, Any]] = {}
    done: dict[int, dict[str, Any]] = {}
    for event in events[2:last]:
        place = event["output_index"]
        match event["type"].removeprefix("response.").split("."):
            case ["output_item", "added"]:
                assert place == len(items)
                items[place] = event["item"] | {"open": None, "filled": "", "closed": []}
            case ["output_item", "done"]:
                item = items[place]
                assert item["open"] is None
                assert event["item"]["id"] == item["id"]
                if item["type"] == "function_call":
                    assert event["item"]["arguments"] == item["filled"]
                else:
                    assert event["item"]["content"] == item["closed"]
                done[place] = event["item"]
            case ["content_part", "added"]:
                assert items[place]["open"] is None
                assert event["content_index"] == len(items[place]["closed"])
                items[place] |= {"open": event["part"]["type"], "filled": "", "said": False}
            case ["content_part", "done"]:
                item = items[place]
                assert event["part"][_PARTS[item["open"]]] == item["filled"]
                assert item["said"]
                item["closed"].append(event["part"])
                item["open"] = None
            case ["function_call_arguments", "delta"]:
                items[place]["filled"] += event["delta"]
            case ["function_call_arguments", "done"]:
                assert event["arguments"] == items[place]["filled"]
            case [part, "delta"]:
                assert items[place]["open"] == part
                assert event["content_index"] == len(items[place]["closed"])
                items[place]["filled"] += event["delta"]
            case [part, "done"]:
                assert event[_PARTS[part]] == items[place]["filled"]
                items[place]["said"] = True
            case other:
                raise AssertionError(other)
        assert event.get("item_id", items[place]["id"]) == items[place]["id"]
    if final["type"] != "response.failed":
        assert done.keys() == items.keys()
        assert final["response"]["output"] == [done[place] for place in sorted(done)]
    return final["response"]
