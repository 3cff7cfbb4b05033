"""What of this machine's Docker this user may use: its socket, and which images of engines it has."""

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_SECONDS = 5.0


def find_image(repositories: Sequence[str]) -> str | None:
    """The first image of one of these repositories; None: there is none, or no Docker."""
    program = shutil.which("docker")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    names = [line.strip() for line in done.stdout.splitlines() if "<none>" not in line]
    return next((name for wanted in repositories for name in names if name.rpartition(":")[0] == wanted), None)


def may_use_docker(env: Mapping[str, str] | None = None) -> bool:
    """Whether there is a socket of Docker that this user may talk to. Whether a daemon answers there is not asked."""
    address = (os.environ if env is None else env).get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not address.startswith("unix://"):
        return True
    path = Path(address.removeprefix("unix://"))
    try:
        return stat.S_ISSOCK(path.stat().st_mode) and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False
