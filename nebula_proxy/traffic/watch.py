"""Looks once a second for replicas that hang, by what flows through this process; the verdict is `decisions/progress`'s.

A replica that hangs is put out, and everything open on it is told: its streams are resumed or ended, its other requests go to
another replica. Whoever flows costs one comparison.
"""

from collections import defaultdict
from typing import Protocol

import structlog

from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.decisions.progress import (
    STALL_SECONDS,
    WITNESS_FRESH_SECONDS,
    WITNESS_LAG_SECONDS,
    Flow,
    PromptPace,
    Replica,
    first_guess,
    hang,
)
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.routing_table import Route

log = structlog.get_logger(__name__)


class Watched(Protocol):
    """An open request, as far as the watch looks at it."""

    route: Route | None

    @property
    def heard_at(self) -> float:
        """When its engine last showed on it that it works, monotonic seconds; 0 if it has not."""

    def flow(self, now: float) -> Flow | None:
        """What it says of its replica; None when no tokens are made for it, or it waits for something else than its engine."""

    def on_engine(self) -> bool:
        """An engine works on it now."""

    def has_elsewhere(self, now: float) -> bool:
        """Another replica could take it."""

    def engine_hangs(self, detail: str) -> None:
        """Its replica is found hanging."""


class Watch:
    """Of one process."""

    def __init__(self, ejections: Ejections) -> None:
        self._ejections = ejections
        self._paces: dict[str, PromptPace] = {}

    def first_token(self, model: str, seconds: float, size: int) -> None:
        """A streamed request of `size` bytes got its first token after `seconds`."""
        self._paces[model] = self._paces.get(model, PromptPace()).seen(seconds, size)

    def look(self, open_requests: list[Watched], now: float) -> None:
        heard: dict[str, float] = {}
        for request in open_requests:
            route = request.route
            if route is not None:
                at = max(request.heard_at, route.heard_at)
                if at > heard.get(route.replica, -1.0):
                    heard[route.replica] = at
        silent = {replica for replica, at in heard.items() if now - at > STALL_SECONDS}
        if not silent:
            return
        on: dict[str, list[Watched]] = defaultdict(list)
        for request in open_requests:
            if request.route is not None and request.route.replica in silent and request.on_engine():
                on[request.route.replica].append(request)
        for replica, requests in on.items():
            self._judge(replica, requests, now - heard[replica], now)

    def _judge(self, replica: str, requests: list[Watched], quiet: float, now: float) -> None:
        route = requests[0].route
        assert route is not None  # noqa: S101 - these have one
        flows = [flow for flow in (request.flow(now) for request in requests) if flow is not None]
        witnessed = _is_witnessed(route, now, quiet)
        quiet = min(quiet, now - route.moved_at + WITNESS_LAG_SECONDS)
        seen = Replica(flows, len(requests) - len(flows), quiet, witnessed, requests[0].has_elsewhere(now))
        pace = self._paces.get(route.endpoint.model, PromptPace()).value
        verdict = hang(seen, pace, first_guess(route.endpoint.engine))
        if verdict is None:
            return
        detail = f"the engine hangs: nothing from it for {quiet:.1f} s"
        log.warning("engine_hangs", replica=replica, verdict=str(verdict), requests=len(requests), silent_seconds=quiet)
        self._ejections.strike(replica, route.endpoint.engine_epoch, Evidence.HANG, now)
        for request in requests:
            request.engine_hangs(detail)


def _is_witnessed(route: Route, now: float, quiet: float) -> bool:
    """Whether the agent tells of the engine's counters, and its latest word is of the time of this silence.

    An engine that told them, and tells them no longer while its agent is heard, is as silent to it as it is to us.
    """
    if not route.counted:
        return False
    age = now - route.sampled_at
    return age <= WITNESS_FRESH_SECONDS and quiet - age > WITNESS_LAG_SECONDS
