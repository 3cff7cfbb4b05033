"""Which start of which engine holds a response that a client may go on from (`previous_response_id`).

An engine keeps responses in its own memory, so a request that continues one must come to the same start of the same
replica. This process notes the ids that pass through it; other processes learn them from its report, once a second
(a client on a kept connection comes back to the same process anyway). An id nobody has noted goes to any replica, whose
own answer says whether it knows it. Bounded: the oldest are forgotten first.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from nebula_core.records.snapshot import ReceivedProxy

KEPT = 20_000
#: Ids of one report, and for how long each is told: a report may be lost.
REPORTED = 512
REPORTED_SECONDS = 3.0

#: The first `id` of a response object that names one; ids of output items have other beginnings.
_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,96})"').search
_LOOKED_AT = 4096


class Holder(NamedTuple):
    replica: str
    engine_epoch: str | None


class ResponseHolders:
    """The memory of one process."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Holder] = OrderedDict()
        #: Monotonic time and id of those this process noted itself, oldest first.
        self._noted: OrderedDict[str, float] = OrderedDict()
        #: The latest report of every other process.
        self._heard: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def holder(self, response_id: object) -> Holder | None:
        return self._held.get(response_id) if type(response_id) is str else None

    def note(self, answer: bytes, replica: str, engine_epoch: str | None, now: float) -> None:
        """Reads the id out of the beginning of an answer: the first event of a stream, or a whole response."""
        found = _ID(answer, 0, _LOOKED_AT)
        if found is None:
            return
        name = found.group(1).decode("ascii")
        self._keep(name, Holder(replica, engine_epoch))
        self._noted[name] = now
        while len(self._noted) > REPORTED:
            self._noted.popitem(last=False)

    def told(self, now: float) -> dict[str, tuple[str, str | None]]:
        """What this process noted of late, for its report."""
        while self._noted:
            name, at = next(iter(self._noted.items()))
            if now - at <= REPORTED_SECONDS:
                break
            del self._noted[name]
        return {name: self._held[name] for name in self._noted if name in self._held}

    def follow(self, own: str, proxies: Iterable[ReceivedProxy]) -> None:
        """Learns what other processes have told, each report once."""
        heard: dict[str, int] = {}
        for seen in proxies:
            report = seen.report
            if report.proxy == own:
                continue
            heard[report.proxy] = report.sequence
            if self._heard.get(report.proxy) != report.sequence:
                for name, (replica, epoch) in report.responses.items():
                    self._keep(name, Holder(replica, epoch))
        self._heard = heard

    def _keep(self, name: str, holder: Holder) -> None:
        self._held[name] = holder
        self._held.move_to_end(name)
        if len(self._held) > KEPT:
            self._held.popitem(last=False)
