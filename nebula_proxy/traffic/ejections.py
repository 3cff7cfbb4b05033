"""Endpoints this process has put out on its own evidence; the rules are in `decisions/ejection`."""

import structlog

from nebula_proxy.decisions.candidates import Standing
from nebula_proxy.decisions.ejection import UNREACHABLE, Evidence, Health, probe_over, probing, struck

log = structlog.get_logger(__name__)


class Ejections:
    """What is held against endpoints, by replica. One of another engine start has a clean slate."""

    def __init__(self) -> None:
        self._held: dict[str, Health] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def standing(self, replica: str, engine_epoch: str | None, now: float) -> Standing:
        health = self._held.get(replica)
        if health is None or health.engine_epoch != engine_epoch or health.times == 0:
            return Standing.SOUND
        if health.is_due(now):
            return Standing.PROBE
        return Standing.OUT if health.evidence in UNREACHABLE else Standing.STRUGGLING

    def strike(self, replica: str, engine_epoch: str | None, evidence: Evidence, now: float) -> None:
        before = self._held.get(replica)
        after = self._held[replica] = struck(before, evidence, engine_epoch, now)
        if after.times and (before is None or before.times != after.times):
            log.warning(
                "endpoint_ejected",
                replica=replica,
                evidence=str(evidence),
                seconds=after.out_until - now,
            )

    def trying(self, replica: str, engine_epoch: str | None, now: float) -> None:
        """A request goes there: if it is due, this is its probe."""
        health = self._held.get(replica)
        if health is not None and health.engine_epoch == engine_epoch and health.is_due(now):
            self._held[replica] = probing(health)

    def gave_up(self, replica: str) -> None:
        """A request ended there without saying anything for or against it."""
        health = self._held.get(replica)
        if health is not None and health.probing:
            self._held[replica] = probe_over(health)

    def clear(self, replica: str) -> None:
        """It answered."""
        health = self._held.pop(replica, None)
        if health is not None and health.times:
            log.info("endpoint_restored", replica=replica)

    def reasons(self, now: float) -> dict[str, str]:
        """Those that are out, for the report."""
        return {name: str(held.evidence) for name, held in self._held.items() if held.is_out(now) or held.is_due(now)}

    def keep_only(self, epochs: dict[str, str | None]) -> None:
        """Forgets endpoints that are gone or were started anew; `epochs` are those that are there."""
        for replica in [
            name for name, held in self._held.items() if name not in epochs or epochs[name] != held.engine_epoch
        ]:
            del self._held[replica]
