"""One line to the store: a redis-py client with a limit on every wait and errors in our own words.

redis-py's defaults retry and wait 5 seconds each time: a frozen server held a call for 12 (reliability, M10). Here
nothing is retried and each call has one deadline over everything, connecting included. What goes wrong becomes
StoreUnavailable (try again later, serve on meanwhile) or StoreUnfit (somebody must change a line first).
A call that timed out or was cancelled may have been carried out: writers must be safe to repeat.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field
from redis import DriverInfo
from redis import exceptions as failures
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nebula_core.errors import NebulaError, StoreUnavailable, StoreUnfit
from nebula_core.security.files import read_secret

Argument = str | int | float | bytes


class StoreSettings(BaseModel):
    """Where the store is and how long a call may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: `redis://host:port/db`, `rediss://…` for TLS, or `unix:///path/to/socket`.
    url: str = "redis://127.0.0.1:6379/0"
    username: str | None = None
    #: A file of mode 0600 with the password; better than a password in the URL.
    password_file: Path | None = None
    tls_ca_file: Path | None = None
    #: Longest a call may take, connecting included.
    socket_timeout_seconds: float = Field(default=5.0, gt=0)
    #: The same for the leader's lease, which must be given up before it ends.
    lease_timeout_seconds: float = Field(default=1.0, gt=0)
    max_connections: int = Field(default=32, ge=2)

    @property
    def shown_url(self) -> str:
        """The address without credentials, for messages and logs."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Line:
    """A small pool of connections for one purpose, so that a long wait for logs never delays a lease."""

    def __init__(self, settings: StoreSettings, *, timeout_seconds: float, connections: int) -> None:
        self.settings = settings
        self.timeout_seconds = timeout_seconds
        extra: dict[str, Any] = {}
        if settings.username is not None:
            extra["username"] = settings.username
        if settings.password_file is not None:
            extra["password"] = read_secret(settings.password_file).decode().strip()
        if settings.tls_ca_file is not None and settings.url.startswith("rediss:"):
            extra["ssl_ca_certs"] = str(settings.tls_ca_file)
        try:
            pool = BlockingConnectionPool.from_url(
                settings.url,
                max_connections=connections,
                timeout=timeout_seconds,
                # One deadline per call, set in `ask`: redis-py drops the connection of a call that is cancelled by it.
                socket_timeout=None,
                socket_connect_timeout=timeout_seconds,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                decode_responses=True,
                # A foreign byte in one value must not make a whole batch unreadable: that record fails by itself.
                encoding_errors="replace",
                # Else each connection looks on the disk for the version of redis-py, on the event loop.
                driver_info=DriverInfo(),
                **extra,
            )
        except ValueError as error:
            raise StoreUnfit(
                f"{settings.shown_url!r} is no address of a store", hint="Use redis://, rediss:// or unix://"
            ) from error
        self._redis = Redis.from_pool(pool)

    async def ask(self, *command: Argument, patience: float | None = None) -> Any:
        """The reply to one command; `patience` is the time the server itself was told to wait (BLOCK)."""
        with self._in_our_words():
            async with asyncio.timeout(self.timeout_seconds + (patience or 0.0)):
                return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def ask_all(self, commands: Sequence[Sequence[Argument]], *, atomic: bool = False) -> list[Any]:
        """The replies to several commands in one round trip; `atomic` wraps them in MULTI."""
        with self._in_our_words():
            async with asyncio.timeout(self.timeout_seconds), self._redis.pipeline(transaction=atomic) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute()

    async def run(self, script: "Script", keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Runs a script by its hash, sending its text only to a server that does not know it."""
        with self._in_our_words():
            async with asyncio.timeout(self.timeout_seconds):
                return await self._redis.register_script(script.text)(keys=list(keys), args=list(arguments))

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except (failures.RedisError, OSError, TimeoutError) as error:
            raise translated(error, self.settings.shown_url, self.timeout_seconds) from error


class Script:
    """A Lua script of this package; see `scripts/`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (files("nebula_core.store") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")


def translated(error: Exception, where: str, timeout_seconds: float) -> NebulaError:
    """What a failure of redis-py means for an operator."""
    if type(error) is failures.ConnectionError and isinstance(error.__cause__, failures.RedisError):
        # What the server answered while redis-py was introducing itself.
        error = error.__cause__
    text = str(error).rstrip(".")
    match error:
        case failures.AuthenticationError() | failures.AuthorizationError():
            return _refused(where, text)
        case _ if any(
            word in text for word in ("Authentication required", "NOAUTH", "WRONGPASS", "invalid username-password")
        ):
            return _refused(where, text)
        case failures.NoPermissionError():
            return StoreUnfit(
                f"the store at {where} does not allow this user what it needs: {text}",
                hint="Allow its ACL user the command named here on the keys nebula:v1:*",
            )
        case failures.TimeoutError() | TimeoutError():
            return StoreUnavailable(
                f"the store at {where} did not answer within {timeout_seconds:g} s",
                hint="Look whether the server hangs or the network drops its packets",
            )
        case failures.OutOfMemoryError():
            return StoreUnavailable(
                f"the store at {where} is out of memory and refuses writes", hint="Raise maxmemory in its configuration"
            )
        case failures.ReadOnlyError():
            return StoreUnavailable(
                f"the store at {where} is a read-only replica", hint="Point store.url at the primary"
            )
        case failures.ConnectionError() | OSError():
            return StoreUnavailable(
                f"the store at {where} is not reachable: {text}", hint="Start it, or correct store.url"
            )
        case _ if "MISCONF" in text:
            return StoreUnavailable(
                f"the store at {where} cannot write to its disk: {text}", hint="Free space on the store's disk"
            )
        case _:
            return StoreUnfit(f"the store at {where} answered: {text}", hint="Is it used by something else as well?")


def _refused(where: str, text: str) -> StoreUnfit:
    return StoreUnfit(
        f"the store at {where} refuses these credentials: {text}", hint="Set store.username and store.password_file"
    )
