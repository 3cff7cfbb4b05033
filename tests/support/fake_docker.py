"""A Docker Engine in memory whose containers are processes of this machine; it loses answers and hangs when told to.

It passes the same contract suite as the real one (`tests/contracts/runtime`).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from nebula_agent.adapters.docker_engine import DockerRefused, DockerUnavailable, EngineFacts, ReadLines
from nebula_agent.decisions.containers import Container, ContainerState
from nebula_agent.decisions.images import LocalImage
from nebula_core.records.image_ref import ImageRef

AWAY = DockerUnavailable("Docker is away")


class _Box:
    def __init__(self, identity: str, name: str, body: Mapping[str, Any]) -> None:
        self.id = identity
        self.name = name
        self.body = body
        self.process: subprocess.Popen[bytes] | None = None
        self.began: float | None = None
        self.lines: list[tuple[bytes, bytes]] = []
        self.closed = threading.Event()

    def run(self) -> None:
        config = self.body
        env = dict(one.split("=", 1) for one in config["Env"]) | {"PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [*config["Entrypoint"], *config["Cmd"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        self.began = time.time()
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            nanos = time.time_ns()
            at = datetime.fromtimestamp(nanos // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self.lines.append((f"{at}.{nanos % 10**9:09}Z".encode(), line))
        process.stdout.close()
        process.wait()
        self.closed.set()

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            # Its reader may reap it meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    @property
    def container(self) -> Container:
        state, status = ContainerState.CREATED, None
        if self.process is not None:
            code = self.process.poll()
            state = ContainerState.RUNNING if code is None else ContainerState.EXITED
            status = None if code is None else (128 - code if code < 0 else code)
        return Container(
            id=self.id,
            name=self.name,
            state=state,
            image_id=self.body["Image"],
            labels=self.body["Labels"],
            pid=self.process.pid if state is ContainerState.RUNNING and self.process else None,
            exit_status=status,
            started_at=self.began,
        )


class _Stream:
    def __init__(self) -> None:
        self.ended = threading.Event()

    def close(self) -> None:
        self.ended.set()


class FakeDocker:
    """`away`: every call fails. `lose_answers`: so many creations are made and not answered. `refuse`: what start says."""

    def __init__(self) -> None:
        self.boxes: dict[str, _Box] = {}
        self.away = False
        #: Every call waits until it is set.
        self.answering = asyncio.Event()
        self.answering.set()
        self.lose_answers = 0
        self.live_restore = True
        self.refuse: str | None = None
        #: Events that are not told, as over a broken stream.
        self.mute = False
        self.stored: list[LocalImage] = []
        self._number = 0
        self._listeners: list[tuple[_Stream, Callable[[Mapping[str, Any] | None], None]]] = []

    def close(self) -> None:
        """Nothing is held open."""

    def end(self) -> None:
        for box in self.boxes.values():
            box.send(signal.SIGKILL)
            if box.process is not None:
                box.closed.wait(30)
        for stream, _ in self._listeners:
            stream.close()

    async def facts(self) -> EngineFacts:
        await self._answer()
        return EngineFacts(version="0", api_version="1.41", root_dir="/", live_restore=self.live_restore)

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        await self._answer()
        if any(box.name == name for box in self.boxes.values()):
            raise DockerRefused("the name is taken", status=409)
        self._number += 1
        box = _Box(f"{self._number:064x}", name, body)
        self.boxes[box.id] = box
        if self.lose_answers > 0:
            self.lose_answers -= 1
            raise AWAY
        return box.id

    async def start(self, container: str) -> None:
        box = await self._box(container)
        if self.refuse is not None:
            raise DockerRefused(self.refuse, status=500)
        try:
            box.run()
        except OSError as error:
            raise DockerRefused(str(error), status=400) from error

    async def inspect(self, container: str) -> Container | None:
        await self._answer()
        found = (box for box in self.boxes.values() if container in {box.id, box.name})
        box = next(found, None)
        return None if box is None else box.container

    async def containers(self, label: str) -> list[Container]:
        await self._answer()
        name, _, value = label.partition("=")
        return [box.container for box in self.boxes.values() if box.body["Labels"].get(name) == value]

    async def kill(self, container: str, signal_name: str) -> None:
        box = await self._box(container)
        box.send(signal.Signals[signal_name])

    async def restart_no_more(self, container: str) -> None:
        await self._box(container)

    async def remove(self, container: str) -> None:
        await self._answer()
        box = self.boxes.pop(container, None)
        if box is not None and box.process is not None and box.process.poll() is None:
            box.send(signal.SIGKILL)
            await asyncio.to_thread(box.closed.wait, 30)

    async def images(self) -> list[LocalImage]:
        await self._answer()
        return list(self.stored)

    async def images_in_use(self) -> frozenset[str]:
        await self._answer()
        return frozenset(box.body["Image"] for box in self.boxes.values())

    async def remote_digest(self, image: ImageRef) -> str:
        await self._answer()
        return image.digest or "sha256:" + "0" * 64

    async def pull(self, image: ImageRef, heard: Callable[[Mapping[str, Any]], None], *, stall_seconds: float) -> None:
        del heard, stall_seconds
        await self._answer()
        self.stored.append(LocalImage(id="sha256:" + "f" * 64, digests=(f"{image.name}@{image.digest}",)))

    async def tag_image(self, image_id: str, name: ImageRef) -> None:
        self.stored = [
            one.model_copy(update={"tags": (*one.tags, f"{name.name}:{name.tag}")}) if one.id == image_id else one
            for one in self.stored
        ]

    async def remove_image(self, image: str) -> None:
        await self._answer()
        self.stored = [one for one in self.stored if image not in {one.id, *one.tags, *one.digests}]

    def follow_events(self, label: str, heard: Callable[[Mapping[str, Any] | None], None]) -> _Stream:
        del label
        loop = asyncio.get_running_loop()
        stream = _Stream()
        self._listeners.append((stream, heard))

        def work() -> None:
            known: dict[str, ContainerState] = {}
            tell(None)
            while not stream.ended.wait(0.02):
                for identity, box in list(self.boxes.items()):
                    state = box.container.state
                    if known.get(identity) is not state:
                        known[identity] = state
                        if not self.mute and not self.away:
                            tell({"Actor": {"ID": identity}, "Action": state.value})

        def tell(message: Mapping[str, Any] | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(heard, message)

        threading.Thread(target=work, daemon=True).start()
        return stream

    def follow_lines(self, container: str, keep: Callable[[ReadLines], None], ended: Callable[[], None]) -> _Stream:
        loop = asyncio.get_running_loop()
        stream = _Stream()
        box = self.boxes[container]

        def read(since: str | None) -> Iterator[tuple[bytes, bytes]]:
            del since  # the reader skips what it has
            seen = 0
            while True:
                over = box.closed.is_set() or stream.ended.is_set()
                while seen < len(box.lines):
                    yield box.lines[seen]
                    seen += 1
                if over:
                    return
                time.sleep(0.01)

        def work() -> None:
            keep(read)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended)

        threading.Thread(target=work, daemon=True).start()
        return stream

    async def _box(self, container: str) -> _Box:
        await self._answer()
        found = self.boxes.get(container)
        if found is None:
            raise DockerRefused("no such container", status=404)
        return found

    async def _answer(self) -> None:
        await self.answering.wait()
        await asyncio.sleep(0)
        if self.away:
            raise AWAY
