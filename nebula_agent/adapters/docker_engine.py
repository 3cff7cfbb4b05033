"""The Docker Engine, asked in threads: a daemon that hangs, restarts or is upgraded never blocks the agent's loop.

The docker SDK is synchronous. Every call gets a daemon thread of its own (a handful a minute) and a limit on its time; a
stream (events, lines of a container, a pull) has a thread for as long as it lasts, and is ended by shutting its socket. The
API version is negotiated with each new connection, because the daemon may be another one by then. The library is
imported with the first call: a node without Docker does not pay for it.

What the daemon is told to create is a body made elsewhere (`decisions/container`), sent as it is.
"""

import asyncio
import json
import os
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from nebula_agent.decisions.containers import Container, ContainerState
from nebula_agent.decisions.images import LocalImage
from nebula_core.errors import NebulaError
from nebula_core.records.base import Record
from nebula_core.records.image_ref import ImageRef

log = structlog.get_logger(__name__)

T = TypeVar("T")
Message = Mapping[str, Any]

#: Longest a plain call may take.
CALL_SECONDS = 10.0
#: Calls that wait for a thread at once; more wait their turn.
CALLS_AT_ONCE = 8
#: Streams that broke are begun again after this, doubling up to the second.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
#: Bit of CAP_SYS_RESOURCE in a capability set.
_SYS_RESOURCE = 1 << 24


class DockerUnavailable(NebulaError):
    """Docker does not answer: start it, or look why it hangs."""

    code = "docker_unavailable"


class DockerRefused(NebulaError):
    """Docker answered and will not do it; the message is its own."""

    code = "docker_refused"

    def __init__(self, message: str, *, status: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        #: Of HTTP; None: an error within a stream.
        self.status = status


class EngineFacts(Record):
    """What a daemon is and can do."""

    version: str
    api_version: str
    root_dir: str
    live_restore: bool = False
    memory_bytes: int | None = None
    #: `nvidia`, `cdi`, or None.
    gpu_mode: str | None = None
    #: Whether it may raise the limits of what it starts; None: it could not be seen.
    raises_limits: bool | None = None
    storage_driver: str = ""
    cgroup_version: str = ""

    @property
    def free_bytes(self) -> int | None:
        """On the disk of its data; None where that is not of this machine."""
        try:
            return shutil.disk_usage(self.root_dir).free
        except OSError:
            return None


#: (time, bytes) of each line of a container from a time on (None: from its first), until it ends or its stream is closed.
ReadLines = Callable[[str | None], Iterator[tuple[bytes, bytes]]]


class Stream(Protocol):
    """Something that goes on until it is closed."""

    def close(self) -> None: ...


class ContainerEngine(Protocol):
    """What the docker runtime asks of the daemon. Raises DockerUnavailable or DockerRefused."""

    async def facts(self) -> EngineFacts: ...

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """The id. A call whose answer was lost may have made it: look it up by its name."""
        ...

    async def start(self, container: str) -> None: ...

    async def inspect(self, container: str) -> Container | None:
        """By id or name; None: there is none."""
        ...

    async def containers(self, label: str) -> list[Container]:
        """All with this label, also those that ended; only id, name, state, labels and image are known."""
        ...

    async def kill(self, container: str, signal: str) -> None:
        """A container that does not run is no error."""
        ...

    async def restart_no_more(self, container: str) -> None:
        """Docker is not to start it again by itself; one that is gone is no error."""
        ...

    async def remove(self, container: str) -> None:
        """With what it wrote; one that is gone is no error."""
        ...

    async def images(self) -> list[LocalImage]: ...

    async def images_in_use(self) -> frozenset[str]:
        """Ids of images that any container of the daemon is made of, ours or not."""
        ...

    async def remote_digest(self, image: ImageRef) -> str:
        """What the registry means by this reference now."""
        ...

    async def pull(self, image: ImageRef, heard: Callable[[Message], None], *, stall_seconds: float) -> None:
        """Returns when it is there; ended by cancelling. `heard` gets each message, in the loop."""
        ...

    async def tag_image(self, image_id: str, name: ImageRef) -> None: ...

    async def remove_image(self, image: str) -> None:
        """By id or name; one that is gone is no error. Raises DockerRefused where a container has it."""
        ...

    def close(self) -> None: ...

    def follow_events(self, label: str, heard: Callable[[Message | None], None]) -> Stream:
        """Events of containers with this label, in the loop, for ever; None says that some may have been missed."""
        ...

    def follow_lines(self, container: str, keep: Callable[[ReadLines], None], ended: Callable[[], None]) -> Stream:
        """Calls `keep` in the stream's thread, with what reads the container's lines there; then `ended`, on the loop."""
        ...


class DockerEngine:
    """One daemon, by its address (`unix:///var/run/docker.sock`, `tcp://…`)."""

    def __init__(self, address: str, *, call_seconds: float = CALL_SECONDS) -> None:
        self.address = address
        self._call_seconds = call_seconds
        self._client: Any = None
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE)

    def close(self) -> None:
        """Lets go of the connection; the next call makes another."""
        client, self._client = self._client, None
        if client is not None:
            client.hang_up()

    # --- the daemon

    async def facts(self) -> EngineFacts:
        return await self._call(self._facts)

    def _facts(self, client: Any) -> EngineFacts:
        info, version = client.info(), client.version()
        runtimes = info.get("Runtimes") or {}
        devices = {one.get("Source") for one in info.get("DiscoveredDevices") or ()}
        mode = "nvidia" if "nvidia" in runtimes else None
        if mode is None and ("cdi" in devices or any(_has_cdi(folder) for folder in info.get("CDISpecDirs") or ())):
            mode = "cdi"
        return EngineFacts(
            version=str(version.get("Version", "unknown")),
            api_version=str(version.get("ApiVersion", "unknown")),
            root_dir=str(info.get("DockerRootDir", "/var/lib/docker")),
            live_restore=bool(info.get("LiveRestoreEnabled")),
            memory_bytes=info.get("MemTotal") or None,
            gpu_mode=mode,
            raises_limits=_raises_limits(self.address),
            storage_driver=str(info.get("Driver", "")),
            cgroup_version=str(info.get("CgroupVersion", "")),
        )

    # --- containers

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        answer = await self._call(lambda client: client.create_container_from_config(dict(body), name))
        for warning in answer.get("Warnings") or ():
            log.warning("docker_warns", container=name, warning=str(warning)[:300])
        return str(answer["Id"])

    async def start(self, container: str) -> None:
        await self._call(lambda client: client.start(container))

    async def inspect(self, container: str) -> Container | None:
        found = await self._call_found(lambda client: client.inspect_container(container))
        return None if found is None else _container(found)

    async def containers(self, label: str) -> list[Container]:
        found = await self._call(lambda client: client.containers(all=True, filters={"label": [label]}))
        return [_listed(one) for one in found]

    async def kill(self, container: str, signal: str) -> None:
        try:
            await self._call(lambda client: client.kill(container, signal))
        except DockerRefused as error:
            if error.status not in {404, 409}:
                raise

    async def restart_no_more(self, container: str) -> None:
        await self._call_found(lambda client: client.update_container(container, restart_policy={"Name": "no"}))

    async def remove(self, container: str) -> None:
        try:
            await self._call(lambda client: client.remove_container(container, v=True, force=True))
        except DockerRefused as error:
            # 409: it is being removed already.
            if error.status not in {404, 409}:
                raise

    # --- images

    async def images(self) -> list[LocalImage]:
        return [_image(one) for one in await self._call(lambda client: client.images())]

    async def images_in_use(self) -> frozenset[str]:
        found = await self._call(lambda client: client.containers(all=True))
        return frozenset(str(one.get("ImageID", "")) for one in found)

    async def remote_digest(self, image: ImageRef) -> str:
        answer = await self._call(lambda client: client.inspect_distribution(_spelled(image)))
        return str(answer["Descriptor"]["digest"])

    async def pull(self, image: ImageRef, heard: Callable[[Message], None], *, stall_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work(stream: "_Thread") -> None:
            error: BaseException | None = None
            try:
                client = stream.client(stall_seconds)
                for message in client.pull(image.name, tag=image.digest or image.tag, stream=True, decode=True):
                    if stream.closed:
                        return
                    if "error" in message:
                        raise DockerRefused(str(message["error"]))  # noqa: TRY301 - as what the call itself raises
                    loop.call_soon_threadsafe(heard, message)
            except Exception as caught:
                error = _in_our_words(caught, self.address)
            finally:
                with suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(settle, error)

        stream = _Thread(self.address, f"pull:{image.repository}", work)
        try:
            await done
        finally:
            stream.close()

    async def tag_image(self, image_id: str, name: ImageRef) -> None:
        await self._call(lambda client: client.tag(image_id, name.name, tag=name.tag, force=True))

    async def remove_image(self, image: str) -> None:
        await self._call_found(lambda client: client.remove_image(image, noprune=False))

    # --- streams

    def follow_events(self, label: str, heard: Callable[[Message | None], None]) -> Stream:
        loop = asyncio.get_running_loop()

        def tell(message: Message | None) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(heard, message)

        def work(stream: "_Thread") -> None:
            since: str | None = None
            pause = FIRST_PAUSE_SECONDS
            while not stream.closed:
                try:
                    client = stream.client(None)
                    filters = {"type": ["container"], "label": [label]}
                    events = client.events(since=since, filters=filters, decode=True)
                    pause = FIRST_PAUSE_SECONDS
                    # From here on nothing is missed; what happened before is for a look at all.
                    tell(None)
                    for event in events:
                        nanos = int(event.get("timeNano") or 0)
                        # One nanosecond later, or the last one comes again.
                        since = f"{(nanos + 1) // 10**9}.{(nanos + 1) % 10**9:09}" if nanos else since
                        tell(event)
                except Exception as caught:
                    if not stream.closed:
                        log.debug("docker_events_lost", error=str(_in_our_words(caught, self.address)))
                if stream.wait(pause):
                    return
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

        return _Thread(self.address, "docker-events", work)

    def follow_lines(self, container: str, keep: Callable[[ReadLines], None], ended: Callable[[], None]) -> Stream:
        loop = asyncio.get_running_loop()

        def work(stream: "_Thread") -> None:
            def read(since: str | None) -> Iterator[tuple[bytes, bytes]]:
                if stream.closed:
                    return
                try:
                    client = stream.client(None)
                    for frame in client.read_lines(container, since):
                        if stream.closed:
                            return
                        at, _, text = frame.partition(b" ")
                        yield at, text
                except Exception as caught:
                    if not stream.closed:
                        log.debug("docker_lines_lost", error=str(_in_our_words(caught, self.address)))

            try:
                keep(read)
            finally:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(ended)

        return _Thread(self.address, f"lines:{container[:12]}", work)

    # --- calls

    async def _call_found(self, ask: Callable[[Any], T]) -> T | None:
        try:
            return await self._call(ask)
        except DockerRefused as error:
            if error.status == 404:
                return None
            raise

    async def _call(self, ask: Callable[[Any], T]) -> T:
        async with self._turns:
            return await self._in_thread(ask)

    async def _in_thread(self, ask: Callable[[Any], T]) -> T:
        """In a daemon thread: one that never returns keeps nobody from ending."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(value)  # type: ignore[arg-type] # None only where T is
            else:
                answer.set_exception(error)

        def work() -> None:
            value: T | None = None
            error: BaseException | None = None
            try:
                value = ask(self._connected())
            except Exception as caught:
                error = _in_our_words(caught, self.address)
                if isinstance(error, DockerUnavailable):
                    self.close()
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, value, error)

        threading.Thread(target=work, name="docker", daemon=True).start()
        try:
            # The library's own limit is per read; this one is over everything.
            async with asyncio.timeout(self._call_seconds + 1.0):
                return await answer
        except TimeoutError:
            self.close()
            raise DockerUnavailable(
                f"Docker at {self.address} did not answer within {self._call_seconds:g} s",
                hint="Look why it hangs: journalctl -u docker; its containers go on meanwhile",
            ) from None

    def _connected(self) -> Any:
        client = self._client
        if client is None:
            _require_listener(self.address)
            client = self._client = _client_class()(self.address, self._call_seconds)
        return client


class _Thread:
    """One stream in a thread of its own, ended by shutting its socket."""

    def __init__(self, address: str, name: str, work: Callable[["_Thread"], None]) -> None:
        self._address = address
        self._closed = threading.Event()
        self._clients: list[Any] = []
        self._work = work
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._work(self)
        finally:
            self._hang_up()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it was closed meanwhile."""
        return self._closed.wait(seconds)

    def client(self, stall_seconds: float | None) -> Any:
        """A connection of its own; nothing read for so long ends it."""
        # A stream that is begun again needs no former connection.
        self._hang_up()
        _require_listener(self._address)
        client = _client_class()(self._address, CALL_SECONDS, stall_seconds)
        self._clients[:] = [client]
        if self.closed:
            client.hang_up()
        return client

    def close(self) -> None:
        self._closed.set()
        self._hang_up()

    def _hang_up(self) -> None:
        for client in tuple(self._clients):
            client.hang_up()


def _require_listener(address: str) -> None:
    """Raises OSError where nobody listens. The SDK would leave its socket open in that case."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(address.removeprefix("unix://"))


@cache
def _client_class() -> Any:
    """The SDK's low-level client, with a limit where it has none, and an end to its streams."""
    import docker.api.client as sdk  # noqa: PLC0415 - 20 MB that a node without Docker does not need
    from docker.types.daemon import CancellableStream  # noqa: PLC0415 - the same

    # Its types know nothing of what is private.
    base: Any = sdk.APIClient

    class Client(base):  # type: ignore[misc]
        def __init__(self, address: str, call_seconds: float, stall_seconds: float | None = None) -> None:
            self._stall_seconds = stall_seconds
            self._streaming: Any = None
            self._hung_up = False
            super().__init__(base_url=address, version="auto", timeout=max(1, round(call_seconds)))

        def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
            if "timeout" in kwargs and kwargs["timeout"] is None:
                kwargs["timeout"] = self._stall_seconds
            kwargs.setdefault("timeout", self.timeout)
            return kwargs

        def _get(self, url: str, **kwargs: Any) -> Any:
            return self._streamed(super()._get(url, **kwargs), kwargs)

        def _post(self, url: str, **kwargs: Any) -> Any:
            return self._streamed(super()._post(url, **kwargs), kwargs)

        def _streamed(self, response: Any, kwargs: Mapping[str, Any]) -> Any:
            if kwargs.get("stream"):
                self._streaming = response
                if self._hung_up:
                    # While the answer was awaited: nobody else ends a stream in which nothing comes any more.
                    self.hang_up()
            return response

        def read_lines(self, container: str, since: str | None) -> Iterator[bytes]:
            """Frames of a container's output with their time; the SDK's own call asks for the container first."""
            parameters = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": 1, "tail": "all", "since": since}
            response = self._get(self._url("/containers/{0}/logs", container), params=parameters, stream=True)
            self._raise_for_status(response)
            yield from self._multiplexed_response_stream_helper(response)

        def hang_up(self) -> None:
            self._hung_up = True
            response, self._streaming = self._streaming, None
            if response is not None:
                with suppress(Exception):  # whatever of it is closed already
                    CancellableStream(iter(()), response).close()
                response.close()
            self.close()

    return Client


def _in_our_words(error: BaseException, address: str) -> BaseException:
    """What a failure of the SDK means."""
    import docker.errors  # noqa: PLC0415 - see above
    import requests.exceptions  # noqa: PLC0415 - see above
    import urllib3.exceptions  # noqa: PLC0415 - see above

    if isinstance(error, NebulaError):
        return error
    if isinstance(error, docker.errors.APIError):
        status = error.response.status_code if error.response is not None else None
        said = str(error.explanation or error).strip()
        return DockerRefused(said[:500], status=status)
    timeouts = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if isinstance(error, timeouts) or (error.args and isinstance(error.args[0], timeouts)):
        return DockerUnavailable(
            f"Docker at {address} does not go on answering", hint="Look why it hangs: journalctl -u docker"
        )
    if isinstance(error, json.JSONDecodeError):
        return DockerUnavailable(f"Docker at {address} answered half a message", hint="Look whether it was restarted")
    text = str(error)
    hint = "Start it: systemctl start docker"
    if "Permission denied" in text:
        hint = "Add the agent's user to the group docker, or run the agent as root"
    return DockerUnavailable(f"Docker at {address} is not reachable: {text[:200]}", hint=hint)


def _container(found: Mapping[str, Any]) -> Container:
    state = found.get("State") or {}
    started = _seconds(str(state.get("StartedAt", "")))
    status = _state(state.get("Status"))
    return Container(
        id=str(found["Id"]),
        name=str(found.get("Name", "")).lstrip("/"),
        state=status,
        image_id=str(found.get("Image", "")),
        labels=(found.get("Config") or {}).get("Labels") or {},
        pid=state.get("Pid") or None,
        address=_address(found.get("NetworkSettings") or {}),
        image=str((found.get("Config") or {}).get("Image") or ""),
        published=_published(found.get("NetworkSettings") or {}),
        mounts=_mounts(found.get("Mounts") or ()),
        restarted_by_docker=_restart_policy(found) not in {"", "no"},
        exit_status=None if status.alive or started is None else state.get("ExitCode"),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error", "")),
        started_at=started,
    )


def _address(network: Mapping[str, Any]) -> str | None:
    """The first one it has; older daemons say that of the bridge by itself."""
    found = [network.get("IPAddress"), *(one.get("IPAddress") for one in (network.get("Networks") or {}).values())]
    return next((str(one) for one in found if one), None)


def _published(network: Mapping[str, Any]) -> dict[int, tuple[str, int]]:
    """`{"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"}]}`; IPv4 stands first."""
    found: dict[int, tuple[str, int]] = {}
    for name, places in (network.get("Ports") or {}).items():
        port, _, protocol = str(name).partition("/")
        place = next(iter(places or ()), None)
        if protocol == "tcp" and place is not None and port.isdecimal() and str(place.get("HostPort", "")).isdecimal():
            found[int(port)] = (str(place.get("HostIp") or "0.0.0.0"), int(place["HostPort"]))
    return found


def _mounts(found: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {
        str(one["Destination"]): str(one["Source"]) for one in found if one.get("Destination") and one.get("Source")
    }


def _restart_policy(found: Mapping[str, Any]) -> str:
    return str(((found.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name") or "")


def _listed(found: Mapping[str, Any]) -> Container:
    names = found.get("Names") or [""]
    return Container(
        id=str(found["Id"]),
        name=str(names[0]).lstrip("/"),
        state=_state(found.get("State")),
        image_id=str(found.get("ImageID", "")),
        labels=found.get("Labels") or {},
        started_at=float(found.get("Created") or 0.0),
    )


def _state(word: object) -> ContainerState:
    try:
        return ContainerState(str(word))
    except ValueError:
        # A word of a later version: nothing is concluded from it.
        return ContainerState.RUNNING


def _seconds(text: str) -> float | None:
    """Unix seconds of Docker's time; its year 1 says never."""
    if not text or text.startswith("0001-"):
        return None
    head, _, tail = text.partition(".")
    fraction = tail.rstrip("Z").partition("+")[0][:6]
    try:
        return datetime.fromisoformat(f"{head.rstrip('Z')}.{fraction or '0'}+00:00").timestamp()
    except ValueError:
        return None


def _image(found: Mapping[str, Any]) -> LocalImage:
    return LocalImage(
        id=str(found["Id"]),
        tags=tuple(tag for tag in found.get("RepoTags") or () if "<none>" not in tag),
        digests=tuple(one for one in found.get("RepoDigests") or () if "<none>" not in one),
        size_bytes=found.get("Size"),
        created_at=found.get("Created"),
    )


def _spelled(image: ImageRef) -> str:
    """A reference of one kind: Docker refuses a tag beside a digest in some calls."""
    return f"{image.name}@{image.digest}" if image.digest else f"{image.name}:{image.tag}"


def _has_cdi(folder: str) -> bool:
    try:
        return any("nvidia" in path.name for path in Path(folder).iterdir())
    except OSError:
        return False


def _raises_limits(address: str) -> bool | None:
    """Whether the daemon has CAP_SYS_RESOURCE: who listens on its socket says the kernel."""
    if not address.startswith("unix://"):
        return None
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(address.removeprefix("unix://"))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        bound = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    except (OSError, ValueError, StopIteration):
        return None
    return bool(bound & _SYS_RESOURCE)


def default_address(env: Mapping[str, str] | None = None) -> str:
    """`DOCKER_HOST`, else the usual socket."""
    environment = os.environ if env is None else env
    return environment.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
