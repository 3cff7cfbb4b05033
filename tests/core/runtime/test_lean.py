"""What a service does not need is not loaded."""

import subprocess
import sys

from nebula_core.runtime.lean import import_without


def loaded(code):
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, check=True, text=True
    )
    return set(ran.stdout.split())


def test_a_companion_is_left_out_and_can_be_had_afterwards():
    code = "from nebula_core.runtime.lean import import_without\nimport_without('structlog', 'rich')"
    found = loaded(code)
    assert "structlog" in found
    assert not {"rich", "pygments"} & found
    assert "rich" in loaded(f"{code}\nimport rich, structlog\nstructlog.get_logger().info('it logs')")


def test_what_is_there_already_stays():
    before = sys.modules["pytest"]
    import_without("pytest", "no_such_module")
    assert sys.modules["pytest"] is before
    assert "no_such_module" not in sys.modules


def test_an_agent_loads_no_screen_no_http_client_and_no_docker_before_it_needs_them():
    code = "from nebula_core.runtime.lean import import_without\nimport_without('structlog', 'rich')\nimport nebula_agent.agent"
    heavy = {
        "rich",
        "pygments",
        "textual",
        "httpx",
        "docker",
        "requests",
        "huggingface_hub",
        "fastapi",
        "boto3",
        "typer",
    }
    assert not heavy & loaded(code)
