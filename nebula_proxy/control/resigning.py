"""After a change of the signing key: what the former keys signed is signed anew, so that nodes can forget those keys.

    prepare: nodes learn the next key ─► switch: the control process signs with it ─► *here* ─► finish: nodes forget the old

Signed anew are the same bytes: no order changes, no engine notices. First each envelope is verified against our own keys, present
and retired: a placement that somebody else has put into the store stays as it is, is named, and its node refuses it as
before. Once per leadership, because a control process with the former key may have led in between.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from nebula_core.errors import SignatureRefused
from nebula_core.records.event import Audit, ChangeKind, Event
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.security.envelope import SigningKey, VerifyKeys, signed_anew
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

ACTOR = "planner"
OBJECT = "cluster/signing-key"
#: Verified and signed between two breaths: about 6 ms.
_BREATH = 20
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Looked:
    """`anew` are to be written; `foreign` were signed by nobody of us, with the reason; `ours` is what the others say."""

    anew: tuple[tuple[str, SignedPlacement], ...]
    foreign: Mapping[str, str]
    ours: Mapping[str, Placement] = field(default_factory=dict)


async def look(store: Store, key: SigningKey, trusted: VerifyKeys, replicas: Sequence[str] | None = None) -> Looked:
    """All placements in the store, or those of some replicas."""
    if replicas is None:
        raw = await store.get_all(ChangeKind.PLACEMENT)
    else:
        raw = await store.get_some(ChangeKind.PLACEMENT, replicas)
    anew: list[tuple[str, SignedPlacement]] = []
    foreign: dict[str, str] = {}
    ours: dict[str, Placement] = {}
    for number, (replica, value) in enumerate(sorted(raw.items()), 1):
        try:
            signed = SignedPlacement.from_json(value)
            ours[replica], again = signed_anew(key, trusted, signed, replica)
        except SignatureRefused as error:
            foreign[replica] = error.message
        except ValueError:
            foreign[replica] = "it cannot be read"
        else:
            if again is not signed:
                anew.append((replica, again))
        if number % _BREATH == 0:
            await asyncio.sleep(0)
    return Looked(tuple(anew), foreign, ours)


def audit(stage: str, looked: Looked, key: SigningKey, request_id: str, at: float, result: str | None = None) -> Audit:
    return Audit.model_validate(
        {
            "stage": stage,
            "call": "sign placements anew",
            "actor": ACTOR,
            "role": "admin",
            "object": OBJECT,
            "detail": {
                "key_id": key.key_id,
                "placements": len(looked.anew),
                "not_ours": sorted(looked.foreign)[:_NAMED],
            },
            "result": result,
            "request_id": request_id,
            "at": at,
        }
    )


def told(looked: Looked, key: SigningKey, at: float) -> list[Event]:
    words = f"{len(looked.anew)} placements signed anew by key {key.key_id}"
    if not looked.foreign:
        words += "; the former keys may be taken from the nodes: `nebula-proxy init --rotate finish`"
    return [Event(kind="resigned", object=OBJECT, message=words, actor=ACTOR, result="ok", at=at), *warned(looked, at)]


def warned(looked: Looked, at: float) -> list[Event]:
    """One event for each placement that is not ours."""
    return [
        Event(
            kind="forged",
            object=f"replica/{replica}",
            message=f"the placement in the store is not ours and is not signed for anybody: {reason}; look who writes there",
            severity="crit",
            actor=ACTOR,
            at=at,
        )
        for replica, reason in sorted(looked.foreign.items())[:_NAMED]
    ]
