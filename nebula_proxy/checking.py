"""`nebula-proxy check`: would it run? Each line says what was looked at and what to do when it is not as it should be."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nebula_core.errors import NebulaError
from nebula_core.security.envelope import SigningKey
from nebula_core.security.sealing import SealingKeyPair
from nebula_core.store.connection import connect
from nebula_proxy.adapters.strategy_plugins import load_strategies
from nebula_proxy.adapters.telemetry import Exporter, wanted
from nebula_proxy.listening import require_free
from nebula_proxy.settings import ProxySettings


class Result(NamedTuple):
    name: str
    good: bool
    text: str


async def checks(settings: ProxySettings, *, settings_only: bool = False) -> list[Result]:
    """Everything that can be known without serving; `settings_only`, what does not change by our own running."""
    results = [
        Result("settings", good=True, text=_shown(settings)),
        _tried("signing key", lambda: _signing(settings.control.signing_key_file)),
        _tried("sealing key", lambda: _sealing(settings.sealing_key_file)),
        _strategies(settings),
        _tried("traces", lambda: _traces(settings)),
    ]
    if settings_only:
        return results
    return [
        *results,
        _tried("data port", lambda: _port(settings.host, settings.port, "the data plane")),
        _tried("control port", lambda: _port(settings.control.host, settings.control.port, "the Control API")),
        await _store(settings),
    ]


def _tried(name: str, look: Callable[[], str]) -> Result:
    try:
        return Result(name, good=True, text=look())
    except NebulaError as error:
        return Result(name, good=False, text=str(error))


def _shown(settings: ProxySettings) -> str:
    auth = "keys required" if settings.require_auth else "OPEN: no key required"
    return f"{settings.workers} worker(s), {auth}, hot path {'on' if settings.hot_path else 'off'}"


def _port(host: str, port: int, what: str) -> str:
    require_free(host, port, what)
    return f"{host}:{port} is free"


def _signing(path: Path | None) -> str:
    if path is None:
        return "none: the control process of this machine cannot place anything (`control.signing_key_file`)"
    return f"{path} (key id {SigningKey.load(path).key_id})"


def _sealing(path: Path | None) -> str:
    if path is None:
        return "none: only engines without a key are reached (`sealing_key_file`)"
    SealingKeyPair.load(path)
    return str(path)


def _strategies(settings: ProxySettings) -> Result:
    strategies = load_strategies()
    default = settings.routing.default_strategy
    text = f"{default} by default; {', '.join(strategies.by_name)}"
    if default not in strategies.by_name:
        return Result("strategies", good=False, text=f"there is no {default!r} (`routing.default_strategy`): {text}")
    if strategies.broken:
        # The proxy serves without them; whoever installed one wants to know.
        problems = "; ".join(f"{name}: {problem}" for name, problem in strategies.broken.items())
        return Result("strategies", good=False, text=f"left out: {problems}. {text}")
    return Result("strategies", good=True, text=text)


def _traces(settings: ProxySettings) -> str:
    if not wanted(settings.traces.endpoint):
        return "off (`traces.endpoint`, OTEL_EXPORTER_OTLP_ENDPOINT)"
    Exporter(settings.traces.endpoint, settings.traces.ratio, "check").close()
    return f"to {settings.traces.endpoint or 'the collector of OTEL_EXPORTER_OTLP_ENDPOINT'}"


async def _store(settings: ProxySettings) -> Result:
    try:
        async with await connect(settings.store) as store:
            await store.check()
    except NebulaError as error:
        return Result("store", good=False, text=str(error))
    return Result("store", good=True, text=settings.store.shown_url)
