"""Engines that somebody else runs, as a runtime: nothing is started and nothing is stopped, an address is taken up and let go.

Whether anybody is there is for the monitor to see, as with every engine: an address does not end.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.engine_http import Answer, EngineHttp, Said
from nebula_agent.adapters.log_files import note
from nebula_agent.adapters.runtime import Ended, Look, Room, Started
from nebula_agent.decisions.external import Address, detect_kind, listed_models, which_model, why_refused
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.engines.base import Command, Launch
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import Clock
from nebula_core.security.files import read_secret
from nebula_core.security.text import clean_text

RESOLVE_SECONDS = 5.0
SCRAPE_SECONDS = 5.0
DISK_SECONDS = 10.0


class ExternalRefused(NebulaError):
    """The node does not reach out to that address, or nothing there is the engine that was named."""

    code = "external_refused"


class ExternalRuntime:
    """Takes up addresses; one for all external engines of a node."""

    kind = "external"

    def __init__(self, http: EngineHttp, policy: LocalPolicy, clock: Clock, boot_id: str) -> None:
        self._http = http
        self._policy = policy
        self._clock = clock
        self._boot_id = boot_id
        self._disk = DiskThreads("external")

    async def take_up(self, address: Address, room: Room, launch_model: str, args: Mapping[str, object]) -> Started:
        """Resolves, judges and asks once. Raises ExternalRefused."""
        number = await self._resolve(address)
        key = await self._disk.look(DISK_SECONDS, self.key_for, address)
        said = await self._http.ask("GET", number, address.port, "/v1/models", key)
        models = _mapping(said)
        listed = listed_models(models)
        if said.answer is not Answer.YES or not listed:
            told = said.detail or "it lists no model"
            raise ExternalRefused(f"{address.text}: {told}", hint=_KEY_HINT if " 401" in told else "Is it running?")
        wanted = args.get("model")
        served = which_model(launch_model, wanted if isinstance(wanted, str) else None, listed)
        if served is None:
            names = clean_text(", ".join(listed[:5]), max_length=200)
            raise ExternalRefused(f"{address.text} lists {names}", hint="Say which is meant: args.model")
        page = await self._http.figures(number, address.port, key, seconds=SCRAPE_SECONDS)
        kind = args.get("kind")
        detected = detect_kind(
            kind if isinstance(kind, str) else None, models, page.body[:65536].decode("utf-8", "replace")
        )
        told = f"{detected} at http://{address.text} ({number}), not ours to start"
        await self._disk.do(room.replica, note, room.log_file, told)
        return Started(
            runtime=self.kind,
            engine_epoch=room.engine_epoch,
            host=number,
            probe_host=number,
            port=address.port,
            log_file=str(room.log_file),
            started_at=self._clock.wall(),
            boot_id=self._boot_id,
            detected=detected,
            served_model=served,
        )

    def key_for(self, address: Address) -> str | None:
        """From the file the policy names for it; None: it takes none. Raises ExternalRefused."""
        file = self._policy.external_keys.get(address.text)
        if file is None:
            return None
        try:
            return read_secret(Path(file)).decode("ascii").strip()
        except (NebulaError, OSError, UnicodeDecodeError) as error:
            raise ExternalRefused(f"the key of {address.text} cannot be read: {error}", hint=_KEY_HINT) from error

    async def _resolve(self, address: Address) -> str:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise ExternalRefused(f"{address.host} cannot be resolved: {error}", hint="Correct `source`") from error
        numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        reason = why_refused(address, numbers, self._policy.external)
        if reason is not None:
            raise ExternalRefused(reason)
        return numbers[0]

    # --- the seam

    def inside(self, launch: Launch) -> Launch:
        return launch

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:  # noqa: ARG002 - see `take_up`
        raise ExternalRefused(f"{launch.replica} has no address", hint="Name it in `source`: http://host:port")

    async def know(self, started: Started, replica: str) -> None:
        """Nothing to find again: its address stands in `started`."""

    def look(self, started: Started) -> Look:  # noqa: ARG002 - an address does not end
        return Look(Life.RUNNING)

    async def ended(self, started: Started, timeout: float) -> None:  # noqa: ARG002 - it never does
        await self._clock.sleep(timeout)

    async def members(self, started: Started) -> frozenset[int]:  # noqa: ARG002 - none of this node's
        return frozenset()

    async def stop(self, started: Started, *, term_seconds: float) -> Ended:  # noqa: ARG002 - it is let go
        return Ended()

    def let_go(self, started: Started) -> None:
        """Nothing was held."""


_KEY_HINT = "Name a file with its key in `external_keys` of this node's policy"


def _mapping(said: Said) -> Mapping[str, object]:
    try:
        found = json.loads(said.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
