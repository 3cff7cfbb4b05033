"""Engines that somebody else runs: where they may be reached, and what they are, told from what they answer.

An address is judged after it was resolved, every one of its numbers, and the number that was judged is the one that
is connected to (reliability T8, M16): a name may point elsewhere a moment later. Numbers of the link and of this machine's
metadata services are refused unless the policy names them themselves.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

Number = ipaddress.IPv4Address | ipaddress.IPv6Address

#: What `args.kind` may say, and what is found out otherwise.
KINDS = ("vllm", "sglang", "llamacpp", "xllm", "other")
_BY_PREFIX = ((re.compile(r"^vllm:", re.MULTILINE), "vllm"), (re.compile(r"^sglang[:_]", re.MULTILINE), "sglang"))
_LLAMACPP = re.compile(r"^llamacpp:", re.MULTILINE)


class Address(NamedTuple):
    host: str
    port: int

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(url: str) -> Address:
    """Of `http://host:port`, whose form the deployment has checked."""
    split = urlsplit(url)
    return Address(split.hostname or "", split.port or 80)


def why_refused(address: Address, numbers: Sequence[str], allowed: Collection[str]) -> str | None:
    """Why this node does not reach out there, with what to change; None: it may."""
    hint = "list it in `external` of this node's policy"
    if not allowed:
        return f"the policy of this node allows no external engine; {hint}"
    named = any(entry.lower() in {address.host.lower(), address.text.lower()} for entry in allowed)
    networks = [network for entry in allowed if (network := _network(entry)) is not None]
    if not numbers:
        return f"{address.host} cannot be resolved"
    for text in numbers:
        number = _plain(ipaddress.ip_address(text))
        inside = any(number.version == network.version and number in network for network in networks)
        if inside:
            continue
        if not named:
            return f"{address.text} is {number}, which the policy of this node does not allow; {hint}"
        if number.is_loopback:
            if address.host.lower() not in {"localhost", str(number)}:
                return f"{address.host} resolves to this machine ({number}); {hint} by its number if that is meant"
        elif number.is_link_local or number.is_multicast or number.is_unspecified or number.is_reserved:
            return f"{address.host} resolves to {number}, which is no engine; {hint} by its number if it is one"
    return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _plain(number: Number) -> Number:
    """`::ffff:127.0.0.1` is 127.0.0.1."""
    mapped = getattr(number, "ipv4_mapped", None)
    return number if mapped is None else mapped


class Detected(NamedTuple):
    kind: str
    #: What the engine calls the model; None: as clients do.
    served_model: str | None


def detect_kind(said: str | None, models: Mapping[str, object], metrics: str) -> str:
    """From `args.kind`, else from the names of its metrics, else from who owns its models."""
    if said is not None:
        return said if said in KINDS else "other"
    for pattern, kind in _BY_PREFIX:
        if pattern.search(metrics):
            return kind
    if _LLAMACPP.search(metrics):
        return "llamacpp"
    data = models.get("data")
    owners = (
        {str(entry.get("owned_by")) for entry in data if isinstance(entry, dict)} if isinstance(data, list) else set()
    )
    return next((kind for kind in ("vllm", "sglang", "llamacpp") if kind in owners), "other")


def listed_models(models: Mapping[str, object]) -> tuple[str, ...]:
    data = models.get("data")
    if not isinstance(data, list):
        return ()
    return tuple(str(entry["id"]) for entry in data if isinstance(entry, dict) and "id" in entry)


def which_model(name: str, said: str | None, listed: Sequence[str]) -> str | None:
    """What the engine calls the model clients call `name`; None when that cannot be told.

    `said` is `args.model`. Of an engine that serves one model alone, that one is meant.
    """
    if said is not None:
        return said if said in listed else None
    if name in listed:
        return name
    return listed[0] if len(listed) == 1 else None
