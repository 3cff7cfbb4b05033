"""Whether a store may be used as it is configured; the refusal names the line to change (reliability, M9, M11, M12)."""

from collections.abc import Mapping
from typing import Any

from nebula_core.errors import StoreUnavailable, StoreUnfit
from nebula_core.store import keys

OLDEST_VERSION = (7, 0)


def check_info(info: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    """Judges the answer to INFO. Raises StoreUnfit, or StoreUnavailable for a replica that may be promoted yet."""
    version = str(info.get("redis_version", "0"))
    if _numbers(version) < OLDEST_VERSION:
        raise StoreUnfit(
            f"the store is version {version}, Nebula needs 7.0 or later", hint="Install Redis or Valkey 7.0 or later"
        )
    if info.get("role", "master") != "master":
        raise StoreUnavailable("the store is a replica, which loses writes", hint="Point store.url at the primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreUnfit(
            f"the store throws records away when it is full (maxmemory-policy {policy})",
            hint="Set `maxmemory-policy noeviction` in its configuration",
        )
    if not int(info.get("aof_enabled", 0)):
        raise StoreUnfit(
            "the store would lose everything with its process (appendonly no)",
            hint="Set `appendonly yes` and `appendfsync everysec` in its configuration",
        )
    oldest_reader = meta.get("oldest_reader", str(keys.SCHEMA))
    if not oldest_reader.isdecimal() or int(oldest_reader) > keys.SCHEMA:
        raise StoreUnfit(
            f"the store was written for schema {oldest_reader}, this program reads {keys.SCHEMA}",
            hint="Update this program",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
