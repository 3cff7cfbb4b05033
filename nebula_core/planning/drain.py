"""When a draining replica may be stopped: a gate, never a sleep (reliability 1.4).

    run ──drain──► draining ──quiet in two reports running──► stop ──reported stopped──► removed
                      └──────────── grace is over ─────────────►

*Quiet* is three facts at once. Every live proxy routes by a revision that has the drain, so none will send another
request. None of them has a request open there. The engine itself counts nothing running and nothing waiting, which
also covers a proxy that fell silent with streams open. A fact nobody can tell is unknown, not zero: with neither a
proxy nor an engine sample to ask, only the grace ends the drain. And one look is not enough: a proxy may have
reported between choosing an endpoint and counting the request, an engine may have been scraped a moment before it
came in. So the same must be said again by a newer report of every party.
"""

from dataclasses import dataclass

from nebula_core.planning.policy import DrainSeen
from nebula_core.records.placement import Placement
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, ClusterSnapshot, ReceivedProxy


@dataclass(frozen=True, slots=True)
class Gate:
    open: bool
    reason: str


def live_proxies(view: ClusterSnapshot, now: float) -> dict[str, ReceivedProxy]:
    return {name: seen for name, seen in view.proxies.items() if now - seen.at <= LOST_AFTER_SECONDS}


def why_not_quiet(
    view: ClusterSnapshot, status: ReplicaStatus | None, replica: str, revision: int, now: float
) -> str | None:
    """What still speaks against stopping, or None when it is quiet in this view."""
    proxies = live_proxies(view, now)
    for name in sorted(proxies):
        if proxies[name].report.revision < revision:
            return f"waits for proxy {name} to take it out of routing"
    inflight = sum(seen.report.inflight.get(replica, 0) for seen in proxies.values())
    if inflight:
        return f"{inflight} in flight"
    sample = None if status is None else status.sample
    if sample is None or (sample.requests_running is None and sample.requests_waiting is None):
        return None if proxies else "no proxy and no engine figures: nobody can tell whether it is idle"
    busy = (sample.requests_running or 0) + (sample.requests_waiting or 0)
    return f"the engine still counts {busy} requests" if busy else None


def may_stop(
    view: ClusterSnapshot,
    placement: Placement,
    status: ReplicaStatus | None,
    now: float,
    seen: DrainSeen | None,
) -> Gate:
    """Whether a replica whose placement says `drain` may be told to stop. `seen` is None in the pass that begins it."""
    if status is not None and status.phase in {Phase.STOPPED, Phase.FAILED}:
        return Gate(open=True, reason=f"it is {status.phase} already")
    if seen is None:
        return Gate(open=False, reason="drain begins")
    grace = grace_seconds(view, placement)
    age = now - seen.since
    busy = why_not_quiet(view, status, placement.replica, seen.revision, now)
    if age >= grace:
        cut = f", which cuts what is left: {busy}" if busy else ""
        return Gate(open=True, reason=f"grace of {grace:.0f} s is over{cut}")
    if busy is not None:
        return Gate(open=False, reason=f"{busy}, {age:.0f} of {grace:.0f} s")
    if seen.quiet_at is None or not _said_again(view, placement, seen.quiet_at, now):
        return Gate(open=False, reason="quiet, waits to hear it twice")
    return Gate(open=True, reason="nothing in flight")


def grace_seconds(view: ClusterSnapshot, placement: Placement) -> float:
    """The node's drain sets the grace where there is one, else the deployment does."""
    intent = view.intents.get(placement.node)
    if intent is not None and intent.drain is not None:
        return intent.drain.grace_seconds
    deployment = view.deployments.get(placement.deployment)
    return placement.spec.drain_grace_seconds if deployment is None else deployment.spec.drain_grace_seconds


def _said_again(view: ClusterSnapshot, placement: Placement, quiet_at: float, now: float) -> bool:
    received = view.reports.get(placement.node)
    if received is None or received.at <= quiet_at:
        return False
    return all(seen.at > quiet_at for seen in live_proxies(view, now).values())
