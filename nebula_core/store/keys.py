"""Every key of the store, in one place (DESIGN, 3). One writer each; the version in the prefix is the schema's."""

from collections.abc import Mapping
from types import MappingProxyType

from nebula_core.records.event import ChangeKind

PREFIX = "nebula:v1:"

#: Major version of the key layout, and the oldest reader that still understands it.
SCHEMA = 1
OLDEST_READER = 1

META = f"{PREFIX}meta"
REVISION = f"{PREFIX}revision"
CHANGES = f"{PREFIX}changes"
EVENTS = f"{PREFIX}events"
AUDIT = f"{PREFIX}audit"
TELEMETRY = f"{PREFIX}telemetry"
REQUESTS = f"{PREFIX}requests"
LEASE = f"{PREFIX}lease:planner"
EPOCH = f"{PREFIX}epoch:planner"

#: The hash that holds each kind of durable record.
DURABLE: Mapping[ChangeKind, str] = MappingProxyType(
    {
        ChangeKind.DEPLOYMENT: f"{PREFIX}deployments",
        ChangeKind.NODE: f"{PREFIX}nodes",
        ChangeKind.INTENT: f"{PREFIX}intents",
        ChangeKind.PLACEMENT: f"{PREFIX}placements",
        ChangeKind.KEY: f"{PREFIX}access",
    }
)

#: About how many entries each stream keeps.
CHANGES_KEPT = 10_000
EVENTS_KEPT = 5_000
AUDIT_KEPT = 100_000
REQUESTS_KEPT = 10_000
LOG_LINES_KEPT = 10_000
#: 1,000 nodes once a second for about 20 seconds: far more than the 100 ms between two reads.
TELEMETRY_KEPT = 20_000

REPORT = f"{PREFIX}report:"
PROXY = f"{PREFIX}proxy:"
LOGWATCH = f"{PREFIX}logwatch:"
HELD = f"{PREFIX}held:"


def report(node: str) -> str:
    return f"{REPORT}{node}"


def proxy(name: str) -> str:
    return f"{PROXY}{name}"


def proxy_inbox(proxy: str) -> str:
    return f"{PREFIX}inbox:proxy:{proxy}"


def inflight(proxy: str) -> str:
    return f"{PREFIX}inflight:{proxy}"


def answers(command: str) -> str:
    return f"{PREFIX}answers:{command}"


def agent(node: str) -> str:
    return f"{PREFIX}agent:{node}"


def held(node: str) -> str:
    return f"{HELD}{node}"


def limits(key_id: str) -> str:
    return f"{PREFIX}limits:{key_id}"


def logs(replica: str) -> str:
    return f"{PREFIX}logs:{replica}"


def logwatch(replica: str) -> str:
    return f"{LOGWATCH}{replica}"


def inbox(node: str) -> str:
    return f"{PREFIX}inbox:{node}"


def result(command: str) -> str:
    return f"{PREFIX}result:{command}"


def operation(group: str) -> str:
    return f"{PREFIX}operation:{group}"
