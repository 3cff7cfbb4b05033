"""What an engine's answer says of the engine: trouble that goes elsewhere, or the request's own affair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.retry import Trouble, is_death, pause_after
from nebula_proxy.decisions.whole_answer import trouble_told

DEAD = b'{"error":{"message":"EngineCore encountered an issue.","code":500}}'
DRAINING = b'{"error":{"message":"Request submitted after shutdown","code":500}}'


@pytest.mark.parametrize(
    ("status", "body", "more", "trouble"),
    [
        (429, b"", {}, Trouble.BUSY),
        (503, b"", {}, Trouble.BUSY),
        (500, DRAINING, {}, Trouble.BUSY),
        (500, DEAD, {}, Trouble.BROKEN),
        (404, b"", {"adapter": True}, Trouble.BUSY),
        (401, b"", {"keyed": True}, Trouble.BROKEN),
        (401, b"", {}, None),
        (404, b"", {}, None),
        (400, DEAD, {}, None),
        (422, DRAINING, {}, None),
        (500, b"a bug", {}, None),
    ],
)
def test_what_is_trouble(status: int, body: bytes, more: dict[str, bool], trouble: Trouble | None) -> None:
    told = trouble_told(status, body, **{"keyed": False, "adapter": False, **more})
    assert (told and told[0]) is trouble


def test_a_dead_engine_process_is_a_death_to_whoever_is_told_of_it() -> None:
    told = trouble_told(500, DEAD, keyed=False, adapter=False)
    assert told is not None
    assert is_death(*told)
    assert pause_after(*told) > 0.0
    assert pause_after(Trouble.REFUSED, "nobody listens") == pause_after(Trouble.BROKEN, "an error frame") == 0.0


@given(st.integers(400, 499).filter(lambda status: status not in {401, 404, 429}), st.binary(max_size=64))
def test_a_request_that_is_wrong_troubles_no_engine(status: int, body: bytes) -> None:
    assert trouble_told(status, body, keyed=True, adapter=True) is None
