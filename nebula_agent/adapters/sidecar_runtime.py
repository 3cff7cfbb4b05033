"""The engine's container of a pod, as a runtime: a folder shared with it is all there is, see `decisions/sidecar`.

There is one such container beside an agent, so one engine at a time. Its processes are in another container: they are
neither seen nor signalled here, and that nothing is left of them is the entry point's word.
"""

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from nebula_agent.adapters.disk_threads import DiskSilent, DiskThreads
from nebula_agent.adapters.log_files import size
from nebula_agent.adapters.ports import held_by
from nebula_agent.adapters.runtime import Ended, Look, Room, Started
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.decisions.sidecar import (
    COMMAND_FILE,
    ENDED_FILE,
    KEY_FILE,
    LOG_FILE,
    RUNNING_FILE,
    Ran,
    epoch_of,
    read_ended,
    script,
)
from nebula_agent.engines.base import Command, Launch
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0
#: The entry point waits this long itself before it kills; what it then needs to say so.
MARGIN_SECONDS = 15.0
#: Until the entry point takes a new command up.
TAKE_UP_SECONDS = 30.0


class SidecarBusy(NebulaError):
    """Another engine runs in the one container beside this agent, or nobody there takes commands."""

    code = "sidecar_busy"


class SidecarRuntime:
    """`directory` is the shared folder; `port` is where the container's engine listens."""

    kind = "sidecar"

    def __init__(self, directory: Path, port: int, boot_id: str, clock: Clock) -> None:
        self.port = port
        self._directory = directory
        self._boot_id = boot_id
        self._clock = clock
        self._disk = DiskThreads("sidecar")
        #: The last end that was seen in the folder.
        self._ran: Ran | None = None

    def inside(self, launch: Launch) -> Launch:
        return replace(launch, ports=(self.port, *launch.ports[1:]), key_file=self._directory / KEY_FILE)

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:
        offset = await self._disk.do("folder", self._hand_over, command, room)
        try:
            async with asyncio.timeout(TAKE_UP_SECONDS):
                while not await self._disk.do("look", self._is_taken_up, room.engine_epoch):  # noqa: ASYNC110 - a file sets no Event
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            await self._disk.do("folder", self._withdraw, room.engine_epoch)
            raise SidecarBusy(
                f"nobody takes commands in {self._directory}",
                hint="Run deploy/sidecar-entrypoint.sh as the engine container's entry point, on the same volume",
            ) from None
        return Started(
            runtime=self.kind,
            engine_epoch=room.engine_epoch,
            host=launch.host,
            probe_host="127.0.0.1",
            port=self.port,
            gpus=launch.gpus,
            log_file=str(self._directory / LOG_FILE),
            log_offset=offset,
            started_at=self._clock.wall(),
            boot_id=self._boot_id,
        )

    async def know(self, started: Started, replica: str) -> None:  # noqa: ARG002 - there is one engine
        await self._see(started)

    def look(self, started: Started) -> Look:
        """As the folder was seen last: whoever waits for the end sees it a fifth of a second later."""
        ran = self._ran
        if ran is not None and ran.engine_epoch == started.engine_epoch:
            return Look(Life.ENDED, ran.status, None if ran.status is not None else "its container was restarted")
        return Look(Life.RUNNING)

    async def _see(self, started: Started) -> Look:
        # While the folder's disk hangs nothing is known to have ended.
        with suppress(DiskSilent):
            self._ran = read_ended(await self._disk.look(_LOOK_SECONDS, self._text, ENDED_FILE))
        return self.look(started)

    async def ended(self, started: Started, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (await self._see(started)).life is Life.RUNNING and loop.time() < deadline:  # noqa: ASYNC110 - neither
            await asyncio.sleep(_POLL_SECONDS)

    async def members(self, started: Started) -> frozenset[int]:  # noqa: ARG002 - they are in another container
        return frozenset()

    async def stop(self, started: Started, *, term_seconds: float) -> Ended:
        await self._disk.do("folder", self._withdraw, started.engine_epoch)
        await self.ended(started, term_seconds + MARGIN_SECONDS)
        look = self.look(started)
        if look.life is Life.RUNNING:
            return Ended(failed=f"the engine's container has not ended it; {held_by(self.port)}")
        return Ended(status=look.status)

    def let_go(self, started: Started) -> None:
        """Nothing is held: the command stays, and the engine with it."""

    # --- the folder

    def _hand_over(self, command: Command, room: Room) -> int:
        """Answers the bytes of its log that are of earlier starts."""
        offset = size(self._directory / LOG_FILE)
        other = epoch_of(self._text(COMMAND_FILE))
        if other is not None and not self._has_ended(other):
            raise SidecarBusy(
                f"engine epoch {other} still runs there", hint="It is stopped first; wait, or look why not"
            )
        if command.key_file_content is not None:
            self._write(KEY_FILE, command.key_file_content)
        self._write(COMMAND_FILE, script(room.engine_epoch, command.argv, command.env))
        return offset

    def _is_taken_up(self, engine_epoch: str) -> bool:
        return self._text(RUNNING_FILE).strip() == engine_epoch or self._has_ended(engine_epoch)

    def _withdraw(self, engine_epoch: str) -> None:
        if epoch_of(self._text(COMMAND_FILE)) == engine_epoch:
            (self._directory / COMMAND_FILE).unlink(missing_ok=True)
            (self._directory / KEY_FILE).unlink(missing_ok=True)

    def _has_ended(self, engine_epoch: str) -> bool:
        ran = read_ended(self._text(ENDED_FILE))
        return ran is not None and ran.engine_epoch == engine_epoch

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all, readable by the other container's user through the folder's group alone."""
        draft = self._directory / f".{name}.draft"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        facts = self._directory.stat()
        if os.geteuid() == 0:
            shutil.chown(draft, group=facts.st_gid)
        draft.replace(self._directory / name)

    def _text(self, name: str) -> str:
        try:
            return (self._directory / name).read_text(encoding="utf-8", errors="replace")[:4096]
        except OSError:
            return ""
