"""Where an engine that was found is reached, by this node and by proxies; or why not, with what to do.

    on the node's own network       under its own address, as it listens
    in a container, `-p 8000:8000`  under the node's address and the published port
    in a container, nothing published   under the container's address, which exists on this node alone: it can be asked
                                    and shown; requests can go there only where every proxy is on this machine as well

The container itself is asked under its own address wherever its port is the published one: what serves a published port on
loopback is a helper of Docker's that dies with the daemon, while the engine goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from nebula_agent.decisions.containers import Container, ContainerState
from nebula_agent.decisions.listeners import Listener

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class FoundPlace:
    """`host` and `port` are what others connect to; `probe_host`, with the same port, is how this node does."""

    host: str
    port: int
    probe_host: str
    #: Listens on every address: others reach it under the node's.
    everywhere: bool
    #: The address of a container, which other machines cannot reach.
    inside: bool = False
    #: Where it listens within its container; None: it has no network of its own.
    own_port: int | None = None

    @property
    def local_host(self) -> str:
        """Under which the node's own files name it: a container's address is another one after each start."""
        return "127.0.0.1" if self.everywhere else self.host

    @property
    def loopback(self) -> bool:
        return not self.everywhere and (self.host in LOOPBACK or self.host.startswith("127."))

    def reached_at(self, node_address: str) -> str:
        return node_address if self.everywhere else self.host


def place_of(listener: Listener, *, elsewhere: bool, container: Container | None) -> FoundPlace | str:
    """`elsewhere`: it has a network of its own, as a container has unless it shares the node's."""
    if not elsewhere:
        return FoundPlace(listener.host, listener.port, listener.probe_host, listener.everywhere)
    if container is None:
        return "it has a network of its own, and this agent has no Docker that knows its container"
    if listener.loopback:
        return (
            f"it listens on {listener.host} within its container, where nobody reaches it: start it with --host 0.0.0.0"
        )
    published = container.published.get(listener.port)
    if published is not None:
        host, port = published
        outside = Listener(host, port, listener.inode)
        direct = container.address if port == listener.port else None
        return FoundPlace(host, port, direct or outside.probe_host, outside.everywhere, own_port=listener.port)
    if container.address is None:
        return (
            f"port {listener.port} is not published by its container: start it with -p {listener.port}:{listener.port}"
        )
    return FoundPlace(container.address, listener.port, container.address, False, inside=True, own_port=listener.port)


def why_unreachable(place: FoundPlace, node_address: str) -> str | None:
    """Why no proxy could send requests there; None: they can."""
    if node_address in LOOPBACK:
        # The whole cluster is this machine.
        return None
    if place.inside:
        return (
            f"its container does not publish port {place.port}, so only this node reaches it: "
            f"start it with -p {place.port}:{place.port}, or with --network host"
        )
    if not place.loopback:
        return None
    how = f"--host {node_address}" if place.own_port is None else f"-p {node_address}:{place.port}:{place.own_port}"
    return f"it listens on {place.host} alone, which no proxy reaches: start it with {how}"


def why_silent(container: Container | None, said: str) -> str:
    """What is to be said of one that does not answer."""
    if container is not None and container.state is ContainerState.PAUSED:
        return f"its container is paused: docker unpause {container.name}"
    return said


def on_node(path: str, mounts: Mapping[str, str]) -> str:
    """Where on the node a path of the container lies; unchanged for what is no path, or lies in no mount."""
    if not path.startswith("/"):
        return path
    inside = PurePosixPath(path)
    covering = [target for target in mounts if inside.is_relative_to(target)]
    if not covering:
        return path
    closest = max(covering, key=lambda target: len(PurePosixPath(target).parts))
    return str(PurePosixPath(mounts[closest]) / inside.relative_to(closest))
