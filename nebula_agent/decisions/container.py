"""From an order to the body of `POST /containers/create`: typed fields only, each within the node's policy.

Nothing a placement says is copied into the body as it stands. What the daemon is told is put together here, field by field,
out of values that were each allowed: the image by its id, paths under allowed prefixes after symlinks were resolved, one
port of the agent's range, names of environment variables that cannot change what a program loads, a fixed set of
capabilities. A field that is not written here cannot be asked for (reliability T5, C13, C14: deny lists fail).

The daemon is given the very bytes that were judged: the body is made once and sent once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from posixpath import normpath
from typing import Any

from nebula_agent.decisions.policy import LocalPolicy

#: Where the files of one start are inside the container: its key, tokens.
SECRETS = "/run/nebula"
#: A hub's cache inside the container, when the node shares one.
CACHE = "/var/cache/nebula"
#: Variables that change what is loaded or run, or which devices are seen (CVE-2025-23266): never from outside.
FORBIDDEN_ENV = re.compile(
    r"LD_.*|PYTHON.*|NVIDIA_.*|CUDA_INJECTION.*|DOCKER_.*|NEBULA_.*|BASH_ENV|ENV|IFS|PATH|HOME|SHELL|GCONV_PATH"
    r"|PERL.*|RUBY.*|NODE_OPTIONS|GLIBC_TUNABLES|MALLOC_.*|.*_API_KEY|.*_TOKEN|.*_SECRET|.*_PASSWORD",
    re.IGNORECASE,
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Capabilities that hand over the machine, whatever a policy says of others.
UNGRANTABLE = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "SYS_BOOT", "DAC_READ_SEARCH", "BPF", "MAC_ADMIN"}
)
#: Paths that are no models, whatever a prefix says.
_NEVER_MOUNTED = ("/proc", "/sys", "/dev", "/etc", "/boot", "/run", "/var/run", "/root", "/var/lib/docker")


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the node inside the container. `resolved` is where `source` leads once every symlink was followed."""

    source: str
    resolved: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The GPUs of one start, as their maker's runtime takes them."""

    vendor: str = "nvidia"
    #: By UUID; simulated ones are not given to any container.
    ids: tuple[str, ...] = ()
    indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerOrder:
    """One start, as the agent means it."""

    #: By id (`sha256:…`): a tag could have moved since it was judged.
    image_id: str
    argv: tuple[str, ...]
    #: What the engine's own module asks for.
    env: Mapping[str, str]
    #: What settings and policy of this node hand on.
    passed_env: Mapping[str, str]
    #: The port inside and outside; `host` is the address of the node it is published on.
    host: str
    port: int
    mounts: tuple[Mount, ...]
    #: Files of this start under SECRETS: made by the agent, in its own folder.
    secrets: tuple[Mount, ...]
    #: The node's cache of hubs, by its settings; None: what is downloaded goes with the container.
    cache: Mount | None
    gpus: GpuShare
    labels: Mapping[str, str]
    #: Seconds between SIGTERM and SIGKILL, also when the daemon itself is stopped.
    stop_seconds: float
    #: The node's own cache of models: what lies in it was judged when it was fetched. None: there is none.
    models: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """How this node runs its containers; the policy stands above it."""

    #: `bridge`, `host`, or the name of a network.
    network: str = "bridge"
    shm_bytes: int = 16 * 1024**3
    #: None: nine tenths of the node's memory.
    memory_bytes: int | None = None
    pids: int = 8192
    log_max_bytes: int = 64 * 1024**2
    log_files: int = 2
    capabilities: tuple[str, ...] = ()
    #: `uid:gid`; None is the image's own.
    user: str | None = None
    host_ipc: bool = False
    memlock: bool = True


@dataclass(frozen=True, slots=True)
class ContainerHost:
    """What this node's Docker can do, as it was probed."""

    memory_bytes: int | None = None
    #: Whether rlimits above the daemon's own may be asked for.
    raises_limits: bool = False
    #: `nvidia`, `cdi`, or None: GPUs cannot be given to containers.
    gpu_mode: str | None = None
    port_range: tuple[int, int] = (1, 65535)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no such container is made, with what to change."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Parts:
    binds: list[str] = field(default_factory=list)
    devices: list[dict[str, str]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)


def container_body(
    order: ContainerOrder, settings: ContainerSettings, policy: LocalPolicy, host: ContainerHost
) -> Mapping[str, Any] | Refusal:
    """The body of the create call, or why it is not made."""
    reason = _why_refused(order, settings, policy, host)
    if reason is not None:
        return Refusal(reason)
    parts = _Parts()
    for mount in _all_mounts(order):
        parts.binds.append(f"{mount.resolved}:{mount.target}:{'ro' if mount.read_only else 'rw'}")
    reason = _share_gpus(order.gpus, host, parts)
    if reason is not None:
        return Refusal(reason)
    port = f"{order.port}/tcp"
    on_host = settings.network == "host"
    memory = _memory(settings, policy, host)
    config: dict[str, Any] = {
        "NetworkMode": settings.network,
        "IpcMode": "host" if settings.host_ipc else "private",
        "Privileged": False,
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": sorted(settings.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "PidsLimit": min(settings.pids, policy.max_pids or settings.pids),
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(settings.log_max_bytes), "max-file": str(settings.log_files)},
        },
        "Binds": parts.binds,
        "Devices": parts.devices,
        "DeviceRequests": parts.requests,
        "Ulimits": _limits(settings, host),
    }
    if not settings.host_ipc:
        config["ShmSize"] = settings.shm_bytes if memory is None else min(settings.shm_bytes, memory)
    if memory is not None:
        # No swap beside it: an engine that swaps is as good as hung.
        config["Memory"] = config["MemorySwap"] = memory
    if not on_host:
        config["PortBindings"] = {port: [{"HostIp": order.host, "HostPort": str(order.port)}]}
    env = dict(order.passed_env) | dict(order.env)
    body: dict[str, Any] = {
        "Image": order.image_id,
        "Entrypoint": [order.argv[0]],
        "Cmd": list(order.argv[1:]),
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "Labels": dict(order.labels),
        "ExposedPorts": {} if on_host else {port: {}},
        "StopSignal": "SIGTERM",
        "StopTimeout": max(1, round(order.stop_seconds)),
        "Tty": False,
        "OpenStdin": False,
        # The image's own check would be a second opinion that nobody reads.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": config,
    }
    if settings.user is not None:
        body["User"] = settings.user
    return body


def _why_refused(
    order: ContainerOrder, settings: ContainerSettings, policy: LocalPolicy, host: ContainerHost
) -> str | None:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", order.image_id):
        return f"image {order.image_id[:80]!r} is not named by its id"
    if not order.argv or any("\0" in word for word in order.argv):
        return "the command line of the engine is empty or holds a NUL"
    low, high = host.port_range
    if not low <= order.port <= high:
        return f"port {order.port} is not of this node's range {low}-{high}"
    return (
        _why_namespaces(settings, policy)
        or _why_capabilities(settings, policy)
        or _why_env(order, policy)
        or _why_mounts(order, policy)
    )


def _why_namespaces(settings: ContainerSettings, policy: LocalPolicy) -> str | None:
    if settings.network == "host" and not policy.host_network:
        return "docker.network is host and the policy of this node does not say host_network = true"
    if settings.network.startswith("container:") or settings.network == "":
        return f"docker.network {settings.network!r} is no network"
    if settings.host_ipc and not policy.host_ipc:
        return "docker.host_ipc is set and the policy of this node does not say host_ipc = true"
    return None


def _why_capabilities(settings: ContainerSettings, policy: LocalPolicy) -> str | None:
    for name in settings.capabilities:
        plain = name.upper().removeprefix("CAP_")
        if plain in UNGRANTABLE:
            return f"capability {name} hands the machine over and is never given"
        if plain not in policy.capabilities:
            return f"capability {name} is not among `capabilities` of this node's policy"
    return None


def _why_env(order: ContainerOrder, policy: LocalPolicy) -> str | None:
    for name, value in (*order.env.items(), *order.passed_env.items()):
        if not _ENV_NAME.fullmatch(name) or "\0" in value or "\n" in value:
            return f"environment variable {name[:64]!r} cannot be handed on"
        if FORBIDDEN_ENV.fullmatch(name):
            return f"environment variable {name} is never handed to a container"
    for name in order.passed_env:
        if name not in policy.environment:
            return f"environment variable {name} is not among `environment` of this node's policy"
    return None


def _why_mounts(order: ContainerOrder, policy: LocalPolicy) -> str | None:
    for mount in _all_mounts(order):
        for path in (mount.source, mount.resolved, mount.target):
            if not path.startswith("/") or normpath(path) != path or any(c in path for c in ":\0\n"):
                return f"path {path[:200]!r} cannot be mounted; use a plain absolute path without `:`"
    for mount in order.mounts:
        for path in (mount.source, mount.resolved):
            if path == "/" or any(_is_under(path, never) for never in _NEVER_MOUNTED):
                return f"{path} is never given to a container"
            own = order.models is not None and path != order.models and _is_under(path, order.models)
            if not own and not any(_is_under(path, prefix) for prefix in policy.mount_prefixes):
                led = "" if path == mount.source else f" (where {mount.source} leads)"
                return f"{path}{led} is under none of `mounts` of this node's policy; add its folder there"
        if not mount.read_only:
            return f"{mount.source} would be writable for the engine"
    if order.cache is not None and order.cache.target != CACHE:
        return f"the cache would be put at {order.cache.target}"
    for mount in order.secrets:
        if not _is_under(mount.target, SECRETS) or not mount.read_only:
            return f"a secret would be put at {mount.target}"
    return None


def _all_mounts(order: ContainerOrder) -> tuple[Mount, ...]:
    return (*order.mounts, *order.secrets, *(() if order.cache is None else (order.cache,)))


def _is_under(path: str, prefix: str) -> bool:
    plain = prefix.rstrip("/")
    return plain != "" and (path == plain or path.startswith(f"{plain}/"))


def _share_gpus(gpus: GpuShare, host: ContainerHost, parts: _Parts) -> str | None:
    if not gpus.ids:
        return None
    if gpus.vendor == "nvidia":
        if host.gpu_mode == "cdi":
            names = [f"nvidia.com/gpu={name}" for name in gpus.ids]
            parts.requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": names})
        elif host.gpu_mode == "nvidia":
            request = {"Driver": "nvidia", "Count": 0, "DeviceIDs": list(gpus.ids), "Capabilities": [["gpu"]]}
            parts.requests.append(request)
        else:
            return "Docker on this node cannot give GPUs to containers: install the NVIDIA container toolkit"
    elif gpus.vendor in {"huawei", "ascend"}:
        names = [f"davinci{index}" for index in gpus.indexes] + ["davinci_manager", "devmm_svm", "hisi_hdc"]
        parts.devices.extend(_device(f"/dev/{name}") for name in names)
        parts.binds.append("/usr/local/Ascend/driver:/usr/local/Ascend/driver:ro")
    elif gpus.vendor == "amd":
        names = ["kfd", *(f"dri/renderD{128 + index}" for index in gpus.indexes)]
        parts.devices.extend(_device(f"/dev/{name}") for name in names)
    else:
        return f"GPUs of {gpus.vendor} cannot be given to containers"
    return None


def _device(path: str) -> dict[str, str]:
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}


def _limits(settings: ContainerSettings, host: ContainerHost) -> list[dict[str, Any]]:
    """Pinned memory for transfers between GPUs, where the daemon may raise the limit at all (components, 2)."""
    if not settings.memlock or not host.raises_limits:
        return []
    return [{"Name": "memlock", "Soft": -1, "Hard": -1}]


def _memory(settings: ContainerSettings, policy: LocalPolicy, host: ContainerHost) -> int | None:
    said = settings.memory_bytes
    if said is None and host.memory_bytes is not None:
        # The kernel shall end the engine that is too large, not its neighbours or the agent.
        said = host.memory_bytes * 9 // 10
    if policy.max_memory_bytes is None:
        return said
    return policy.max_memory_bytes if said is None else min(said, policy.max_memory_bytes)
