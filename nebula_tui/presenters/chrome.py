"""The lines around the screens: identity and age at the top, what is wrong with the link, and the keys."""

from dataclasses import dataclass
from typing import Final

from nebula_core.records.access import Role
from nebula_core.records.store_memory import StoreDoubt
from nebula_tui.presenters.cells import Severity, age
from nebula_tui.presenters.fleet import FleetState, LinkState
from nebula_tui.presenters.text import local_time

#: (key, name, label, short label) of the eight screens.
SCREENS: Final = (
    ("1", "overview", "Overview", "Over"),
    ("2", "nodes", "Nodes", "Nodes"),
    ("3", "models", "Models", "Models"),
    ("4", "engine", "Engine", "Eng"),
    ("5", "requests", "Requests", "Req"),
    ("6", "logs", "Logs", "Logs"),
    ("7", "chat", "Chat", "Chat"),
    ("8", "events", "Events", "Evt"),
)


@dataclass(frozen=True, slots=True)
class LinkFace:
    """How the link looks in the first line, and the banner when it needs one."""

    word: str
    severity: Severity
    data_age: float | None
    banner: str | None = None


def link_face(fleet: FleetState, now: float, url: str) -> LinkFace:
    old = fleet.link_age(now)
    if fleet.link.state is LinkState.LOST:
        retry = max(0.0, (fleet.link.retry_at or now) - now)
        again = f"again in {retry:.1f}s" if retry > 0.05 else "trying again"
        shown = f"figures are {age(old)} old" if old is not None else "nothing received yet"
        banner = f"NOT CONNECTED · {shown} · actions locked · {again} · {fleet.link.reason}"
        return LinkFace("DOWN", Severity.CRIT, old, banner)
    if fleet.link.state is LinkState.CONNECTING:
        waiting = None if old is None else f"CONNECTING AGAIN · figures are {age(old)} old · actions locked"
        return LinkFace("CONNECTING", Severity.WARN, old, waiting)
    if not fleet.is_live(now):
        return LinkFace(
            "QUIET",
            Severity.WARN,
            old,
            f"NO WORD from {url} for {age(old)} · figures are old · actions locked",
        )
    if fleet.store_is_stale(now):
        return LinkFace(
            "STORE DOWN",
            Severity.CRIT,
            fleet.store_age(now),
            f"STORE NOT REACHABLE · figures are {age(fleet.store_age(now))} old · replicas go on serving"
            " · changes are refused until it is back",
        )
    doubt = fleet.cluster.store_doubt if fleet.cluster is not None else None
    if doubt is not None:
        how = "CAME BACK EMPTY" if doubt is StoreDoubt.EMPTIED else "CAME BACK OLDER THAN IT WAS"
        return LinkFace(
            "IN DOUBT",
            Severity.CRIT,
            old,
            f"STORE {how} · replicas go on serving · changes are refused until `nebula adopt --store`"
            " has written back what runs, or the right files are put back",
        )
    return LinkFace("LIVE", Severity.OK, old)


def role_word(role: str | None, name: str | None) -> str:
    """`RW admin@ops` or `RO …`; empty before the server said who we are."""
    if role is None:
        return ""
    return f"{'RW' if may_act(role) else 'RO'} {role}@{name}" if name else ("RW" if may_act(role) else "RO")


def may_act(role: str | None) -> bool:
    """Operators and admins change things; what the server did not say yet is allowed to nobody."""
    try:
        return role is not None and Role(role).includes(Role.OPERATOR)
    except ValueError:
        return False


def clock(wall: float, fleet: FleetState) -> str:
    return local_time(wall, fleet.utc_offset_seconds)
