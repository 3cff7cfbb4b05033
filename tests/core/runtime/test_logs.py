"""Logs: one line per event, JSON, and no secret in any of them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebula_core.records.access import Role
from nebula_core.runtime.logs import configure_logging, redacted
from nebula_core.security.credentials import mint_key

TOKEN, KEY = mint_key("n", Role.ADMIN, now=1, created_by="x")
SECRET = TOKEN.split("_", 2)[2]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    found = io.StringIO()
    yield found
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_its_action(stream: io.StringIO) -> None:
    configure_logging("info", stream=stream)
    structlog.get_logger("nebula_core.x").info("store_reachable", revision=7, nodes=("a", "b"))
    structlog.get_logger("nebula_core.x").debug("hidden")
    (found,) = written(stream)
    assert found["action"] == "store_reachable"
    assert found["level"] == "info"
    assert found["revision"] == 7
    assert found["nodes"] == ["a", "b"]
    assert found["logger"] == "nebula_core.x"
    assert "timestamp" in found


def test_libraries_speak_the_same_way(stream: io.StringIO) -> None:
    configure_logging("info", stream=stream)
    logging.getLogger("uvicorn.error").warning("closing %s for %s", "connection", TOKEN)
    (found,) = written(stream)
    assert found["action"] == f"closing connection for nbl_{KEY.id}_***"
    assert found["level"] == "warning"


def test_secrets_are_nowhere_in_a_line(stream: io.StringIO) -> None:
    configure_logging("debug", stream=stream)
    log = structlog.get_logger("t")
    url = "redis://user:hunter2@10.0.0.1:6379/0"
    message = f"call with {TOKEN}"
    log.info(message, a=TOKEN, b=[TOKEN, {"c": (TOKEN,), TOKEN: 1}], headers={"Authorization": "Basic abc"})
    log.info("x", password="hunter2", url=url, raw=TOKEN.encode(), header="Bearer sk-something", obj=Exception(TOKEN))

    def fail() -> None:
        raise ValueError(f"bad token {TOKEN} for {url}")

    try:
        fail()
    except ValueError:
        log.exception("failed")
        logging.getLogger("lib").exception("lib failed")
    log.bind(token="hunter2").warning("bound")
    text = stream.getvalue()
    assert SECRET not in text
    assert "hunter2" not in text
    assert "sk-something" not in text
    assert "Basic abc" not in text
    assert f"nbl_{KEY.id}_***" in text
    assert "ValueError" in text
    assert len(written(stream)) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(), name=st.text(min_size=1))
def test_whatever_is_logged_stays_one_ascii_line(stream: io.StringIO, text: str, name: str) -> None:
    """Threat T18: newlines, escapes, separators and bidirectional marks arrive escaped."""
    stream.seek(0)
    stream.truncate()
    configure_logging("info", stream=stream)
    structlog.get_logger("t").info("x", value=text, more={name: text})
    raw = stream.getvalue()
    assert raw.isascii()
    assert raw.count("\n") == 1
    assert all(letter.isprintable() for letter in raw[:-1])
    json.loads(raw)


def test_a_person_gets_clean_text(stream: io.StringIO) -> None:
    configure_logging("info", json=False, stream=stream)
    structlog.get_logger("t").info("x", value="\x1b]0;owned\x07red\x1b[31m", token="hunter2")
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "red" in text
    assert "hunter2" not in text


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="no log level"):
        configure_logging("loud")


def test_deep_and_odd_values_end() -> None:
    loop: list[object] = []
    loop.append(loop)
    redacted(loop)
    assert redacted({"a": {1: object}}) == {"a": {"1": "<class 'object'>"}}
    assert redacted(None) is None
    assert redacted(1.5) == 1.5
