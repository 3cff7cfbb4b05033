"""Endpoints this process has put out on its own evidence; the rules are in `decisions/ejection`."""

import structlog

from nebula_proxy.decisions.candidates import Standing
from nebula_proxy.decisions.ejection import UNREACHABLE, Evidence, Health, probe_over, probing, struck

log = structlog.get_logger(__name__)


class Ejections:
    """What is held against endpoints, by replica. One of another engine start has a clean slate."""

    def __init__(self) -> None:
        #: Empty on most days: looked at on every request, and nothing more is asked then.
        self.held: dict[str, Health] = {}

    def standing(self, replica: str, engine_epoch: str | None, now: float) -> Standing:
        health = self.held.get(replica)
        if health is None or health.engine_epoch != engine_epoch or health.times == 0:
            return Standing.SOUND
        if health.is_due(now):
            return Standing.PROBE
        return Standing.OUT if health.evidence in UNREACHABLE else Standing.STRUGGLING

    def strike(self, replica: str, engine_epoch: str | None, evidence: Evidence, now: float) -> None:
        before = self.held.get(replica)
        after = self.held[replica] = struck(before, evidence, engine_epoch, now)
        if after.times and (before is None or before.times != after.times):
            log.warning(
                "endpoint_ejected",
                replica=replica,
                evidence=str(evidence),
                seconds=after.out_until - now,
            )

    def trying(self, replica: str, engine_epoch: str | None, now: float) -> None:
        """A request goes there: if it is due, this is its probe."""
        health = self.held.get(replica)
        if health is not None and health.engine_epoch == engine_epoch and health.is_due(now):
            self.held[replica] = probing(health)

    def gave_up(self, replica: str) -> None:
        """A request ended there without saying anything for or against it."""
        health = self.held.get(replica)
        if health is not None and health.probing:
            self.held[replica] = probe_over(health)

    def clear(self, replica: str) -> None:
        """It answered with something that its engine made."""
        health = self.held.pop(replica, None)
        if health is not None and health.times:
            log.info("endpoint_restored", replica=replica)

    def answered(self, replica: str) -> None:
        """Somebody is there; the engine need not be: a server before an engine that hangs refuses and begins as ever."""
        health = self.held.get(replica)
        if health is not None and health.evidence is Evidence.HANG:
            self.gave_up(replica)
        else:
            self.clear(replica)

    def reasons(self, now: float) -> dict[str, str]:
        """Those that are out, for the report."""
        return {name: str(held.evidence) for name, held in self.held.items() if held.is_out(now) or held.is_due(now)}

    def keep_only(self, epochs: dict[str, str | None]) -> None:
        """Forgets endpoints that are gone or were started anew; `epochs` are those that are there."""
        for replica in [
            name for name, held in self.held.items() if name not in epochs or epochs[name] != held.engine_epoch
        ]:
            del self.held[replica]
