"""A worker process imports no more than it serves with (GOALS S5)."""

import json
import subprocess
import sys

LOOK = """
import json, sys
from nebula_proxy import worker
worker._leave_out(json.loads(sys.argv[1]))
import nebula_proxy.app
print(json.dumps(sorted({name.partition('.')[0] for name, module in sys.modules.items() if module is not None})))
"""


def imported(settings: dict[str, object]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(settings)],
        capture_output=True, text=True, check=True, timeout=60, env={},
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_only_a_command_line_needs_is_left_out() -> None:
    found = imported({})
    assert not found & {
        "typer",
        "rich",
        "pygments",
        "pydantic_settings",
        "fastapi",
        "httpx",
        "opentelemetry",
        "textual",
    }
    assert {"uvicorn", "redis", "msgspec"} <= found
