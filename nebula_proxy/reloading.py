"""`nebula-proxy reload`: finds the supervisor and tells it."""

import os
import signal

from nebula_core.errors import NebulaError
from nebula_proxy.settings import ProxySettings
from nebula_proxy.supervisor import PID_FILE


class NotRunning(NebulaError):
    """There is no supervisor to be told."""

    code = "not_running"


def ask_to_reload(settings: ProxySettings, pid: int | None) -> int:
    """Sends SIGHUP; the pid it went to. Raises NotRunning."""
    found = _pid(settings) if pid is None else pid
    try:
        os.kill(found, signal.SIGHUP)
    except (ProcessLookupError, PermissionError) as error:
        raise NotRunning(
            f"process {found} cannot be told: {error.strerror}", hint="is it the supervisor, and are you its user?"
        ) from error
    return found


def _pid(settings: ProxySettings) -> int:
    if settings.data_dir is None:
        raise NotRunning("there is no `data_dir` to find the supervisor in", hint="give --pid, or set `data_dir`")
    path = settings.data_dir / PID_FILE
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise NotRunning(
            f"no supervisor runs with {settings.data_dir}", hint="start it (`nebula-proxy run`), or give --pid"
        ) from error
