"""The proxy's units: exposure within the bound of reliability G21, and what a restart without loss rests on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_hardened():
    unit = str(DEPLOY / "nebula-proxy.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    level = re.search(r"Overall exposure level for [^:]+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= 2.0


def test_reload_stop_and_socket_are_what_the_supervisor_expects():
    service = (DEPLOY / "nebula-proxy.service").read_text()
    assert "Type=notify" in service
    assert "/bin/kill -HUP $MAINPID" in service
    assert "KillMode=mixed" in service  # its children are drained by the supervisor, not by systemd
    assert "FileDescriptorName=data" in (DEPLOY / "nebula-proxy.socket").read_text()
