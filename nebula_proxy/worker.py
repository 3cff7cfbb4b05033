"""One serving process, as the supervisor starts it: `python -m nebula_proxy.worker data|control`, settings and sockets by descriptor.

Not a command for people (`nebula-proxy run --role …` is): it imports no more than it serves with. Libraries that others pull
in where they find them installed, for colours and for metrics of their own, are 20 MB in every data worker (GOALS S5); there
they are left out before anything else is imported, which is why this module imports so late.
"""

# ruff: noqa: PLC0415 - see above

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nebula-proxy worker", description="One serving process of nebula-proxy.")
    parser.add_argument("role", choices=("data", "control"))
    parser.add_argument("--settings", type=int, required=True, help="descriptor with the settings as JSON")
    parser.add_argument("--fd", type=int, action="append", default=[], help="a listening socket")
    parser.add_argument("--ready", type=int, help="descriptor to close once it serves")
    parser.add_argument("--supervised", action="store_true", help="ends when its parent does")
    given = parser.parse_args(words)
    # Blocked by a supervisor that is just taking over; a child must hear them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    # A reload is the supervisor's affair: a signal to the whole group must not end its children.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if given.supervised:
        _end_with_parent()
    with os.fdopen(given.settings, "rb") as file:
        described = file.read()
    if given.role == "data":
        _leave_out(json.loads(described))
    return _serve(given, described)


def _leave_out(settings: dict[str, Any]) -> None:
    """An import of these fails as if they were not installed; whoever would use them does without."""
    names = ["rich", "pygments"]
    traced = settings.get("traces", {}).get("endpoint") or any(name.startswith("OTEL_") for name in os.environ)
    if not traced:
        names.append("opentelemetry")
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type] # the documented way to hide a module


def _serve(given: argparse.Namespace, described: bytes) -> int:
    from nebula_core.errors import NebulaError, SettingsError
    from nebula_core.runtime.logs import configure_logging
    from nebula_core.security.text import clean_text
    from nebula_proxy.listening import adopt
    from nebula_proxy.settings import ProxySettings

    settings = ProxySettings.model_validate_json(described)
    configure_logging(settings.log_level)
    listeners = [adopt(descriptor) for descriptor in given.fd]
    ready = _ready(given.ready)
    try:
        if given.role == "control":
            from nebula_proxy.control.app import run_control

            run_control(settings, listeners or None, ready=ready)
        else:
            from nebula_proxy.app import run_worker

            run_worker(settings, listeners, supervised=given.supervised, ready=ready)
    except NebulaError as error:
        sys.stderr.write(clean_text(f"error: {error}", newlines=True) + "\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def _ready(descriptor: int | None) -> Callable[[], None]:
    def tell() -> None:
        if descriptor is not None:
            os.write(descriptor, b"1")
            os.close(descriptor)

    return tell


def _end_with_parent() -> None:
    """Asks the kernel for SIGTERM when the supervisor dies, however it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
