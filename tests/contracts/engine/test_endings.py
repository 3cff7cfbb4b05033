"""How an engine ends: SIGTERM while idle, the death of its core in mid-stream, the death of the parent."""

import json
import os
import signal
from typing import Any

import httpx

from tests.contracts.engine.shapes import frames
from tests.support.engine_process import EngineProcess, gone, health, wait_until

LONG: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a long one"}],
    "max_tokens": 1900,
    "ignore_eos": True,
    "stream": True,
}
CHAT = "/v1/chat/completions"


def test_the_core_is_a_process_of_its_own_in_the_group_of_its_parent(engine: EngineProcess) -> None:
    core = engine.core_pid
    assert core != engine.pid
    assert os.getpgid(core) == os.getpgid(engine.pid)
    assert os.getsid(core) == os.getsid(engine.pid)


def test_sigterm_ends_an_idle_engine_and_its_core(doomed_engine: EngineProcess) -> None:
    core = doomed_engine.core_pid
    doomed_engine.terminate()
    doomed_engine.wait(60)
    wait_until(lambda: gone(core), 60, "the core is gone")
    assert health(doomed_engine.url) == 0


def test_a_core_that_dies_ends_the_stream_with_an_error_frame_and_then_the_engine(doomed_engine: EngineProcess) -> None:
    core = doomed_engine.core_pid
    with httpx.stream("POST", doomed_engine.url + CHAT, json=LONG, timeout=60.0, trust_env=False) as reply:
        chunks = reply.iter_text()
        text = next(chunks)
        os.kill(core, signal.SIGKILL)
        text += "".join(chunks)
    seen = frames(text)
    assert reply.status_code == 200
    assert seen[-1].data == "[DONE]"
    assert seen[-2].data == {
        "error": {
            "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    }
    assert f"data: {json.dumps(seen[-2].data)}\n\n" in text
    # Soon after, and not for ever: 503 while it listens, then nobody there.
    wait_until(lambda: health(doomed_engine.url) in {503, 0}, 60, "unhealthy")
    wait_until(lambda: health(doomed_engine.url) == 0, 60, "nobody listens")
    doomed_engine.wait(60)
