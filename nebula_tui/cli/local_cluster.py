"""A whole cluster on this machine: what `nebula up` starts, in which order, and when it counts as ready.

Order of start: store → keys → proxy, control process and agents together → the deployments → one token out of
every model. Order of stop: agents first (they stop their engines), with the proxy and the control process;
the store last, so that the agents' last word is kept. Everything lives in one folder:

    keys/        signing, sealing and API keys (0600)       config/   settings of each process
    store/       the append-only file of the store          logs/     one file per process
    nodes/NAME/  what an agent keeps                        context.json  how the CLI finds this cluster
    tmp/         temporary files of all of them, gone when it stops

The same folder resumes the same cluster: keys, deployments and placements are read back from the store's file.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from nebula_core.runtime.processes import free_port, port_holder
from nebula_core.security.files import write_secret
from nebula_core.store.embedded import find_store_program, store_command
from nebula_tui.adapters.api import Api, ApiError
from nebula_tui.adapters.docker_images import find_image, may_use_docker
from nebula_tui.cli.children import Child, ChildSpec, describe_exit, python
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.output import say
from nebula_tui.cli.session import segment

#: Each agent gets this many ports for its engines; blocks follow each other, below those the kernel gives out by itself.
PORTS_PER_NODE = 200
ENGINE_PORTS = range(21000, 32768)
STOP_SECONDS = 8.0
#: vLLM leaves sockets (a name of 36 characters) in its temporary folder; a socket's path has at most 107 characters.
LONGEST_TEMPORARY = 107 - 37
#: Where images of engines come from, as Docker's own tool names them.
_IMAGES = {
    "vllm": ("vllm/vllm-openai",),
    "sglang": ("lmsysorg/sglang",),
    "llamacpp": ("ghcr.io/ggml-org/llama.cpp",),
}
#: Marks every process of a cluster, also engines, so that leftovers of a killed `up` are found again.
MARK = "NEBULA_UP"


@dataclass(frozen=True, slots=True)
class Model:
    """One `--model NAME=SOURCE`, made into a deployment."""

    name: str
    source: str
    engine: str
    gpus: int
    #: Of this machine's Docker; None: the engine is a program on PATH.
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start."""

    data: Path
    port: int
    control_port: int
    store_url: str | None
    nodes: int
    gpus: int
    models: tuple[Model, ...]
    replicas: int
    #: Whether --model was said: only then an existing deployment is changed.
    explicit_model: bool = False
    real_gpus: bool = False
    ready_seconds: float = 300.0


@dataclass(slots=True)
class LocalCluster:
    """The running thing; `say` gets one line per step."""

    plan: Plan
    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    _lock: Any = None
    store_url: str = ""

    async def start(self) -> dict[str, Any]:
        """Starts everything and waits until every model answers. Returns the ready document of the contract.

        Raises CommandError naming what stands in the way; `stop` must be called in any case.
        """
        data = self.plan.data
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._claim(data)
        for port in (self.plan.port, self.plan.control_port):
            _require_free(port)
        sweep(data)
        self.store_url = self.plan.store_url or await self._start_store(data)
        await self._init_keys(data)
        admin_key = (data / "keys" / "admin.key").read_text().strip()
        self._write_context(data)
        await self._start_child(
            "control", python("-m", "nebula_proxy", "run", "--role", "control"), self._proxy_config()
        )
        await self._start_child("proxy", python("-m", "nebula_proxy", "run", "--role", "data"), self._proxy_config())
        names = await self._start_agents(data)
        with Api(self.control_url, admin_key, timeout_seconds=5.0) as api:
            await self._until(lambda: self._control_answers(api), "the Control API")
            await self._until(lambda: self._nodes_reported(api, names), "the nodes")
            await self._deploy(api)
        for model in await asyncio.to_thread(self._models, admin_key):
            await self._until(lambda model=model: self._answers(model, admin_key), f"model {model}")  # type: ignore[misc]
        return self._ready(data, admin_key, names)

    async def stop(self) -> None:
        """Stops everything within 10 s and leaves no process behind. Touches nothing of a folder it could not claim."""
        if self._lock is None:
            return
        store = [child for child in self.children if child.spec.name == "store"]
        others = [child for child in self.children if child.spec.name != "store"]
        for child in others:
            child.terminate()
        await asyncio.gather(*(child.stopped(STOP_SECONDS) for child in others))
        sweep(self.plan.data)
        for child in store:
            child.terminate()
            await child.stopped(1.5)
        (self.plan.data / "context.json").unlink(missing_ok=True)
        shutil.rmtree(self.plan.data / "tmp", ignore_errors=True)
        self._lock.close()

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.plan.control_port}"

    @property
    def openai_base_url(self) -> str:
        return f"http://127.0.0.1:{self.plan.port}/v1"

    def _claim(self, data: Path) -> None:
        self._lock = (data / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock = None
            raise CommandError(
                f"a cluster already runs from {data} (pid {holder})",
                hint="open it with `nebula tui`, or use another folder: --data DIR",
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    async def _start_store(self, data: Path) -> str:
        folder = data / "store"
        folder.mkdir(exist_ok=True, mode=0o700)
        known = folder / "endpoint.json"
        saved = json.loads(known.read_text()) if known.exists() else {}
        password = saved.get("password") or secrets.token_urlsafe(24)
        port = saved.get("port")
        if port is None or port_holder(port) is not None:
            port = free_port()
        write_secret(known, json.dumps({"port": port, "password": password}).encode())
        command = tuple(store_command(find_store_program(), folder, port=port, password=password))
        await self._start("store", command, data)
        await self._until(lambda: _accepts(port), "the store", seconds=30)
        return f"redis://:{password}@127.0.0.1:{port}/0"

    async def _init_keys(self, data: Path) -> None:
        """Keys are made once; the hashes of the API keys are (re)written, so that an empty store is refilled."""
        self.say("keys")
        process = await asyncio.create_subprocess_exec(
            *python("-m", "nebula_proxy", "init", "--data", str(data), "--quiet"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "NEBULA_PROXY_STORE__URL": self.store_url},
        )
        try:
            async with asyncio.timeout(30):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise CommandError("making keys took too long", hint="is the store reachable?") from None
        if process.returncode:
            raise CommandError(f"keys could not be made: {output.decode(errors='replace').strip()[-500:]}")

    def _proxy_config(self) -> Path:
        data = self.plan.data
        return self._config(
            "proxy",
            {
                "host": "127.0.0.1",
                "port": self.plan.port,
                "workers": 1,
                "data_dir": str(data),
                "sealing_key_file": str(data / "keys" / "sealing.key"),
                "public_url": self.openai_base_url.removesuffix("/v1"),
                "store": {"url": self.store_url},
                "control": {
                    "host": "127.0.0.1",
                    "port": self.plan.control_port,
                    "signing_key_file": str(data / "keys" / "signing.key"),
                },
            },
        )

    async def _start_agents(self, data: Path) -> list[str]:
        names = [_host_name()] if self.plan.real_gpus else [f"sim-{index + 1}" for index in range(self.plan.nodes)]
        begin = first_engine_port(data, len(names))
        for index, name in enumerate(names):
            first = begin + index * PORTS_PER_NODE
            config = self._config(
                f"agent-{name}",
                {
                    "node": name,
                    "address": "127.0.0.1",
                    "data_dir": str(data / "nodes" / name),
                    "port_range": [first, first + PORTS_PER_NODE - 1],
                    "gpus": "auto" if self.plan.real_gpus else f"simulated:{self.plan.gpus}",
                    "verify_keys": str(data / "keys" / "verify.keys"),
                    "sealing_public_key": str(data / "keys" / "sealing.pub"),
                    "stop_engines": True,
                    # All of these nodes are this machine: one of them looks.
                    "discovery": {"enabled": index == 0},
                    "store": {"url": self.store_url},
                    **self._docker(looks=index == 0),
                },
            )
            await self._start_child(name, python("-m", "nebula_agent", "run"), config)
        return names

    def _docker(self, *, looks: bool) -> dict[str, Any]:
        """Containers where a model needs one, and then only of that image and with that model's folder.

        The node that looks for engines started by hand needs Docker to look after those in containers as well.
        """
        contained = [model for model in self.plan.models if model.image is not None]
        if not contained:
            return {"docker": {"enabled": looks and may_use_docker()}}
        policy = {
            "images": [model.image for model in contained],
            "mounts": [model.source for model in contained if model.source.startswith("/")],
        }
        return {"docker": {"enabled": True}, "policy_file": str(self._config("policy", policy))}

    async def _start_child(self, name: str, command: tuple[str, ...], config: Path) -> None:
        await self._start(name, (*command, "--config", str(config)), self.plan.data)

    async def _start(self, name: str, command: tuple[str, ...], data: Path) -> None:
        self.say(f"starting {name}")
        env = {MARK: str(data)}
        temporary = data / "tmp"
        if len(str(temporary)) <= LONGEST_TEMPORARY:
            temporary.mkdir(exist_ok=True, mode=0o700)
            env["TMPDIR"] = str(temporary)
        child = Child(ChildSpec(name, command, data / "logs" / f"{name}.log", env), self.say)
        self.children.append(child)
        await child.start()

    def _config(self, name: str, settings: dict[str, Any]) -> Path:
        path = self.plan.data / "config" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_secret(path, tomli_w.dumps(settings).encode())
        return path

    def _write_context(self, data: Path) -> None:
        known = {
            "control_url": self.control_url,
            "openai_base_url": self.openai_base_url,
            "key_file": str(data / "keys" / "admin.key"),
            "pid": os.getpid(),
        }
        write_secret(data / "context.json", json.dumps(known).encode())

    async def _until(self, ask: Callable[[], Any], what: str, *, seconds: float | None = None) -> None:
        """Asks again and again (blocking calls run in a thread) until the answer is true."""
        self.say(f"waiting for {what}")
        deadline = time.monotonic() + (seconds or self.plan.ready_seconds)
        reason: Any = None
        while time.monotonic() < deadline:
            for child in self.children:
                if child.restarts >= 3 and not child.alive:
                    raise CommandError(
                        f"{child.spec.name} does not stay up ({describe_exit(child.last_exit)}):\n{child.last_lines()}",
                        hint=f"its log: {child.spec.log}",
                    )
            reason = await asyncio.to_thread(ask)
            if reason is True:
                return
            await asyncio.sleep(0.1)
        raise CommandError(
            f"{what} did not get ready: {reason or 'no answer'}", hint=f"logs are in {self.plan.data / 'logs'}"
        )

    def _control_answers(self, api: Api) -> bool | str:
        try:
            api.get("/whoami")
        except ApiError as error:
            return error.message
        return True

    def _nodes_reported(self, api: Api, names: list[str]) -> bool | str:
        try:
            ready = {node["id"] for node in api.get("/nodes")["items"] if node["state"] == "ready"}
        except ApiError as error:
            return error.message
        missing = sorted(set(names) - ready)
        return f"{', '.join(missing)} not heard from" if missing else True

    async def _deploy(self, api: Api) -> None:
        for model in self.plan.models:
            await asyncio.to_thread(self._deploy_one, api, model)

    def _deploy_one(self, api: Api, model: Model) -> None:
        path = f"/deployments/{segment(model.name)}"
        try:
            current = api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            current = None
        if current is not None and not self.plan.explicit_model:
            return
        spec: dict[str, Any] = {
            "source": model.source,
            "engine": model.engine,
            "gpus": model.gpus,
            "replicas": self.plan.replicas,
        }
        spec |= {"runtime": "process"} if model.image is None else {"image": model.image, "runtime": "docker"}
        if current is not None and all(current["spec"].get(key) == value for key, value in spec.items()):
            return
        headers = {"if-match": str(current["generation"] if current else 0)}
        try:
            api.call("PUT", path, body={**(current or {}).get("spec", {}), **spec}, headers=headers)
        except ApiError as error:
            if error.code in {"store_emptied", "store_stale"}:
                say(f"{model.name} is not deployed: {error.message}; {error.hint}")
                return  # who looks at it needs the cluster up
            raise CommandError(f"{model.name} was refused: {error.message}", hint=error.hint) from error

    def _models(self, key: str) -> list[str]:
        """What must answer: every deployment of this cluster that wants replicas."""
        with Api(self.control_url, key) as api:
            return [row["name"] for row in api.get("/deployments")["items"] if row["replicas_wanted"] > 0]

    def _answers(self, model: str, key: str) -> bool | str:
        """Whether all wanted replicas are ready, or as many as there is room for, and one token comes out."""
        import httpx

        # The Control API is asked first: requests to a model that only starts would stand in its figures as failures.
        try:
            with Api(self.control_url, key) as api:
                row = api.get(f"/deployments/{segment(model)}")
        except ApiError as error:
            return error.message
        blocked = row["reasons"] and row["replicas_ready"] and not row["replicas_starting"]
        if row["replicas_ready"] < row["replicas_wanted"] and not blocked:
            return str(row["status"] or "starting")
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        try:
            reply = httpx.post(
                f"{self.openai_base_url}/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
                timeout=60,
            )
        except httpx.HTTPError as error:
            return str(error)
        return True if reply.status_code == 200 else reply.text[:300]

    def _ready(self, data: Path, admin_key: str, names: list[str]) -> dict[str, Any]:
        by_name = {child.spec.name: child.pid for child in self.children}
        pids: dict[str, Any] = {name: by_name[name] for name in ("store", "proxy", "control") if name in by_name}
        pids["agents"] = {name: by_name[name] for name in names}
        return {
            "ready": True,
            "openai_base_url": self.openai_base_url,
            "control_url": self.control_url,
            "api_key": (data / "keys" / "api.key").read_text().strip(),
            "admin_key": admin_key,
            "data": str(data),
            "nodes": names,
            "models": self._models(admin_key),
            "pids": pids,
            "store_url": self.store_url,
        }


def first_engine_port(data: Path, nodes: int) -> int:
    """Where the ports of a cluster begin: always the same, and mostly another than that of a cluster in another folder.

    Agents look whether a port is free before an engine has it: of two clusters that began alike, both would take it.
    """
    places = (len(ENGINE_PORTS) - nodes * PORTS_PER_NODE) // PORTS_PER_NODE + 1
    return ENGINE_PORTS[zlib.crc32(str(data).encode()) % max(1, places) * PORTS_PER_NODE]


def choose_model(text: str, *, real_gpus: bool) -> Model:
    """A `NAME=SOURCE` of the command line, with the engine that can serve it here. Raises CommandError."""
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise CommandError(
            f"--model {text!r} is not NAME=SOURCE", code=Exit.USAGE, hint="for example --model chat=./folder"
        )
    if source == "sim":
        return Model(name, source, "simulated", 1)
    gpus = 1 if real_gpus else 0
    path = Path(source).expanduser()
    if path.exists():
        source = str(path.resolve())
    elif source.startswith((".", "/", "~")):
        raise CommandError(f"there is no model at {source}", code=Exit.NOT_FOUND, hint="check the path")
    wants_llamacpp = source.endswith(".gguf")
    candidates = [("llamacpp", "llama-server")] if wants_llamacpp else [("vllm", "vllm"), ("sglang", "sglang")]
    for engine, program in candidates:
        if os.environ.get(f"NEBULA_{engine.upper()}") or shutil.which(program):
            return Model(name, source, engine, gpus)
    # Images of these engines need a GPU, but for llama.cpp's.
    for engine, _ in candidates if real_gpus or wants_llamacpp else ():
        image = find_image(_IMAGES[engine])
        if image is not None:
            return Model(name, source, engine, gpus, image)
    wanted = " or ".join(f"{program} (or NEBULA_{engine.upper()}=PATH)" for engine, program in candidates)
    raise CommandError(
        f"nothing here can serve {source}",
        hint=f"put {wanted} on PATH, or try the simulated engine: --model {name}=sim",
    )


def has_real_gpus() -> bool:
    """Whether the NVIDIA driver shows a GPU; the agent asks NVML for the rest."""
    folder = Path("/proc/driver/nvidia/gpus")
    return folder.is_dir() and any(folder.iterdir())


def sweep(data: Path) -> None:
    """Ends processes that carry the mark of this folder and are not our children (left by a killed `up`)."""
    leftovers = []
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(data):
                leftovers.append(process)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in leftovers:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, leftovers = psutil.wait_procs(leftovers, timeout=1.0)
        if not leftovers:
            return


def _require_free(port: int) -> None:
    holder = port_holder(port)
    if holder is not None:
        raise CommandError(
            f"port {port} is taken by pid {holder.pid or 'unknown'} ({holder.program or 'of another user'})",
            hint="stop it, or choose another: --port / --control-port",
        )


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _host_name() -> str:
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname().lower()).strip("-.")
    return name[:63] or "local"
