"""The key of each engine start, unsealed with the proxies' pair; only proxies and that node's agent know it."""

import structlog

from nebula_core.errors import NebulaError
from nebula_core.records.endpoint import Endpoint
from nebula_core.security.sealing import SealingKeyPair, unseal

log = structlog.get_logger(__name__)


class EngineKeys:
    """Opens sealed keys, each once per engine start."""

    def __init__(self, pair: SealingKeyPair | None) -> None:
        self._pair = pair
        self._opened: dict[str, tuple[str, str | None, bytes | None]] = {}

    def key_of(self, endpoint: Endpoint) -> tuple[bool, bytes | None]:
        """(usable, key): an engine without a key is usable with None, one whose key does not open is not usable."""
        sealed = endpoint.sealed_key
        if sealed is None:
            return True, None
        known = self._opened.get(endpoint.replica)
        if known is not None and known[0] == sealed and known[1] == endpoint.engine_epoch:
            return known[2] is not None, known[2]
        key = self._open(endpoint, sealed)
        self._opened[endpoint.replica] = (sealed, endpoint.engine_epoch, key)
        return key is not None, key

    def keep_only(self, replicas: set[str]) -> None:
        for replica in self._opened.keys() - replicas:
            del self._opened[replica]

    def _open(self, endpoint: Endpoint, sealed: str) -> bytes | None:
        if self._pair is None:
            log.error(
                "engine_key_refused",
                error="the engine wants a key, and this proxy has no sealing key to open it with",
                replica=endpoint.replica,
                hint="set `sealing_key_file` to the file that `nebula-proxy init` made",
            )
            return None
        try:
            return unseal(self._pair, sealed, context=f"{endpoint.replica}|{endpoint.engine_epoch}".encode())
        except NebulaError as error:
            log.error(
                "engine_key_refused",
                replica=endpoint.replica,
                error=error.message,
                hint=error.hint,
            )
            return None
