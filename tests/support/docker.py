"""A Docker of the test's own: dockerd on its own socket and data folder, images made from the local Python, a registry.

Nothing of the machine's own Docker is touched, and nothing global but the bridge that Docker makes: so one such daemon
runs at a time, kept so by a lock. Other workers may have it for minutes: its tests are marked `timeout(…, func_only=True)`,
or that wait would count as theirs. Its data folder outlives the daemon within one run of the suite, so that images are
made once. Where there is no root or no dockerd, tests skip and say so.
"""

import atexit
import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support.engine_process import gone, wait_until
from tests.support.ports import free_port

#: Sockets of Docker have long paths of their own: the folder must be short.
LOCK = Path(tempfile.gettempdir()) / "nebula-test-docker.lock"
SIMULATOR = "nebula-simulator:1"
_LEFT_OUT = {
    *("test", "site-packages", "__pycache__", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data", "turtledemo"),
    *("distutils", "unittest", "curses", "dbm", "sqlite3", "xmlrpc", "venv"),
}
#: What the simulated engine stands on, beside the standard library.
_PACKAGES = ("httptools", "msgspec", "prometheus_client", "uvloop", "nebula_agent")


def why_no_docker() -> str | None:
    """Why no daemon can be started here; None: one can."""
    if os.geteuid() != 0:
        return "needs root to start dockerd"
    missing = [name for name in ("dockerd", "busybox", "iptables") if shutil.which(name) is None]
    return f"{', '.join(missing)} not installed (apt: docker.io busybox-static iptables)" if missing else None


class DockerDaemon:
    """`kill` and `start` as often as a test likes; the data stays."""

    def __init__(self, directory: Path, *, live_restore: bool = False) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.address = f"unix://{self.socket}"
        self.live_restore = live_restore
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: Any = None

    def start(self) -> Self:
        if self._lock is None:
            self._lock = LOCK.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.directory.mkdir(parents=True, exist_ok=True)
        pidfile = self.directory / "docker.pid"
        pidfile.unlink(missing_ok=True)
        command = [
            *("dockerd", "-H", self.address, "--data-root", str(self.directory / "data")),
            *("--exec-root", str(self.directory / "exec"), "--pidfile", str(pidfile)),
            *(("--live-restore",) if self.live_restore else ()),
        ]
        with (self.directory / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while not self._answers():
            if self.process.poll() is not None and "pid file found" in self.log[-500:] and time.monotonic() < deadline:
                # The one that was killed is not reaped yet.
                time.sleep(0.5)
                return self.start()
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"dockerd did not start:\n{self.log[-3000:]}")
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """As a crash: its containers stay with their shims."""
        assert self.process is not None
        helpers = [child.pid for child in psutil.Process(self.process.pid).children()]
        self.process.kill()
        self.process.wait(10)
        # The kernel ends its containerd a moment later; a daemon that finds that one's pid alive waits for it in vain.
        wait_until(lambda: all(map(gone, helpers)), 30, "what served the daemon is gone")
        (self.directory / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def revive(self) -> None:
        """Running again, whatever a test did to it."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        else:
            self.thaw()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """In order; with live-restore its containers stay."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def close(self) -> None:
        """The end of the test: no container, no process is left."""
        try:
            self.revive()
            with contextlib.suppress(Exception):
                self.empty()
            self.stop()
        finally:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if str(self.directory) in " ".join(process.cmdline()) and process.pid != os.getpid():
                        process.kill()
            # A daemon that was killed leaves its data folder mounted on itself.
            subprocess.run(["umount", "-l", str(self.directory / "data")], check=False, capture_output=True)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def empty(self) -> None:
        """No container is left; one that a killed agent had it make or remove just now comes, or goes, meanwhile."""
        import docker.errors

        with _client(self) as client:
            deadline = time.monotonic() + 60
            while left := client.containers(all=True):
                if time.monotonic() > deadline:
                    raise AssertionError(f"containers cannot be removed: {left}")
                for one in left:
                    with contextlib.suppress(docker.errors.APIError):
                        client.remove_container(one["Id"], force=True)

    def client(self) -> Any:
        import docker.api.client

        return docker.api.client.APIClient(base_url=self.address, version="auto", timeout=60)

    @property
    def log(self) -> str:
        return (self.directory / "dockerd.log").read_text(errors="replace")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in probe.recv(200)
            except OSError:
                return False


@contextlib.contextmanager
def _client(daemon: DockerDaemon) -> Iterator[Any]:
    client = daemon.client()
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def simulator_docker(*, live_restore: bool = False) -> Iterator["DockerDaemon"]:
    """A running daemon that has the image of the simulated engine; gone at the end."""
    daemon = DockerDaemon(short_directory(), live_restore=live_restore).start()
    try:
        make_simulator_image(daemon)
        yield daemon
    finally:
        # Of a daemon that keeps containers over its own end they could not be removed.
        daemon.live_restore = False
        daemon.close()


def make_simulator_image(daemon: DockerDaemon, tag: str = SIMULATOR) -> str:
    """The local Python with the simulated engine in it (about 70 MB, 4 s); its id."""
    with _client(daemon) as client:
        found = [image["Id"] for image in client.images() if tag in (image.get("RepoTags") or ())]
        if found:
            return str(found[0])
    with tempfile.TemporaryDirectory(prefix="nbimg") as folder:
        root = Path(folder) / "root"
        prefix, changes = _python_root(root)
        return _import(daemon, root, tag, [f"ENV PATH={prefix}/bin:/bin", *changes])


def add_layer(daemon: DockerDaemon, base: str, tag: str, *, megabytes: int) -> None:
    """An image with one layer more than its base, of so many megabytes that no other image has."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("layer")
        entry.size = megabytes * 1024 * 1024
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    repository, _, version = tag.rpartition(":")
    with _client(daemon) as client:
        made = client.create_container(base, command=["true"])["Id"]
        client.put_archive(made, "/", content.getvalue())
        client.commit(made, repository, version)
        client.remove_container(made, force=True)


def make_small_image(daemon: DockerDaemon, tag: str, *, megabytes: int = 0) -> str:
    """busybox, and so many megabytes that no compression makes smaller; its id."""
    with tempfile.TemporaryDirectory(prefix="nbimg") as folder:
        root = Path(folder) / "root"
        (root / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
        for name in ("sh", "sleep", "cat", "echo"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "weights").write_bytes(os.urandom(megabytes * 1024 * 1024) or tag.encode())
        return _import(daemon, root, tag, ["ENV PATH=/bin"])


def _import(daemon: DockerDaemon, root: Path, tag: str, changes: list[str]) -> str:
    archive = root.parent / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname=".")
    repository, _, name = tag.rpartition(":")
    with _client(daemon) as client:
        client.import_image(src=str(archive), repository=repository, tag=name, changes=changes)
        return str(client.inspect_image(tag)["Id"])


def _python_root(root: Path) -> tuple[Path, list[str]]:
    """A file system with this interpreter at its own prefix, and the simulated engine in /app."""
    prefix = Path(sys.base_prefix)
    version = f"python{sysconfig.get_python_version()}"
    library = prefix / "lib" / version
    for name in ("bin", "lib64", "tmp", "etc", "app"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    target = root / prefix.relative_to("/")
    (target / "bin").mkdir(parents=True)
    shutil.copy(prefix / "bin" / version, target / "bin" / "python3")
    shutil.copytree(
        library,
        target / "lib" / version,
        ignore=lambda _, names: [name for name in names if name in _LEFT_OUT or name.startswith("config-")],
    )
    for package in _PACKAGES:
        module = __import__(package)
        home = Path(next(iter(module.__path__)))
        shutil.copytree(home, root / "app" / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyi", "*.c"))
    binaries = [prefix / "bin" / version, *(library / "lib-dynload").glob("*.so"), *(root / "app").rglob("*.so")]
    shared = prefix / "lib" / str(sysconfig.get_config_var("INSTSONAME"))
    if shared.suffix != ".a" and shared.exists():
        shutil.copy(shared, target / "lib" / shared.name)
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    for word in sorted({word for word in listed.split() if word.startswith("/") and not word.endswith(":")}):
        copied = root / word.lstrip("/")
        if not copied.exists() and Path(word).exists():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, copied)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return prefix, [f"ENV LD_LIBRARY_PATH={prefix}/lib", "ENV PYTHONPATH=/app", "ENV PYTHONDONTWRITEBYTECODE=1"]


class Registry:
    """docker-registry on a port of its own, which Docker takes as insecure because it is of this machine."""

    def __init__(self, directory: Path, *, password: bool = False) -> None:
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.directory = directory
        self._password = password
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [
            "version: 0.1",
            f"storage: {{filesystem: {{rootdirectory: {self.directory}/data}}, delete: {{enabled: true}}}}",
            f"http: {{addr: '{self.host}'}}",
            "log: {level: error}",
        ]
        if self._password:
            # No entry: nobody is let in.
            (self.directory / "htpasswd").write_text("")
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {self.directory}/htpasswd}}}}")
        config = self.directory / "config.yml"
        config.write_text("\n".join(lines))
        with (self.directory / "registry.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "docker-registry ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if time.monotonic() > deadline:
                raise AssertionError("docker-registry did not start")
            time.sleep(0.05)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def push(self, daemon: DockerDaemon, tag: str, name: str) -> str:
        """Pushes a local image under a name of this registry and forgets that name here; the digest."""
        repository, _, version = name.rpartition(":")
        full = f"{self.host}/{repository}"
        with _client(daemon) as client:
            client.tag(tag, full, version)
            digest = ""
            for message in client.push(full, tag=version, stream=True, decode=True):
                if "error" in message:
                    raise AssertionError(message["error"])
                digest = (message.get("aux") or {}).get("Digest", digest)
            client.remove_image(f"{full}:{version}", force=True)
        return digest

    def break_layer(self) -> None:
        """The largest layer loses its second half: pulls of it end early."""
        blobs = sorted(self.directory.rglob("blobs/sha256/*/*/data"), key=lambda path: path.stat().st_size)
        largest = blobs[-1]
        os.truncate(largest, largest.stat().st_size // 2)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)


@cache
def short_directory() -> Path:
    """One per run of the suite, for all daemons of it; a process that ends removes it, whoever comes later makes it anew."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    directory = Path(tempfile.gettempdir()) / f"nbd-{hashlib.sha256(run.encode()).hexdigest()[:8]}"

    def remove() -> None:
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return directory
