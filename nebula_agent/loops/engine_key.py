"""The key of one start of an engine: made for it, kept in a file for an agent that returns, sealed for the proxies, forgotten."""

import secrets
from pathlib import Path

import structlog

from nebula_agent.loops.context import Context, replica_lane
from nebula_core.errors import NebulaError
from nebula_core.security.files import read_secret, write_secret
from nebula_core.security.sealing import seal

log = structlog.get_logger(__name__)


class EngineKey:
    """`key` is None while no engine runs, and when engines of this node run without keys."""

    def __init__(self, replica: str, context: Context) -> None:
        self.key: str | None = None
        #: The key as only the proxies can read it, bound to one engine epoch.
        self.sealed: str | None = None
        self._replica = replica
        self._context = context

    async def make(self) -> str | None:
        """A new key, on disk when this returns. Raises OSError."""
        self.sealed = None
        self.key = key = secrets.token_urlsafe(32) if self._context.sealing_key is not None else None
        await self._write(key)
        return key

    async def keep(self, key: str | None) -> None:
        """The key of an engine that somebody else runs, on disk when this returns. Raises OSError."""
        self.sealed = None
        self.key = key
        await self._write(key)

    async def find(self, engine_epoch: str) -> None:
        """The key of a start that an earlier agent made."""
        path = self._context.files.secret_file(self._replica)
        self.key = await self._context.disk.do(replica_lane(self._replica), _kept, path)
        self.seal(engine_epoch)

    def seal(self, engine_epoch: str) -> None:
        self.sealed = None
        if self.key is not None and self._context.sealing_key is not None:
            context = f"{self._replica}|{engine_epoch}".encode()
            self.sealed = seal(self._context.sealing_key, self.key.encode(), context=context)

    async def forget(self) -> None:
        """The engine is gone: its key opens nothing any more, and lies nowhere. Raises OSError."""
        self.key = self.sealed = None
        files = self._context.files
        paths = (files.secret_file(self._replica), files.key_file(self._replica))
        await self._context.disk.do(replica_lane(self._replica), _remove, paths)

    async def _write(self, key: str | None) -> None:
        if key is not None:
            path = self._context.files.secret_file(self._replica)
            await self._context.disk.do(replica_lane(self._replica), write_secret, path, f"{key}\n".encode())


def _kept(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return read_secret(path).decode("ascii").strip() or None
    except (NebulaError, UnicodeDecodeError) as error:
        log.error("engine_key_unreadable", file=path.name, error=str(error))
        return None


def _remove(paths: tuple[Path, ...]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
