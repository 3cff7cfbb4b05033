"""A real systemd: this machine's root under an overlay, booted by systemd-nspawn with Nebula's units in it.

Nothing of it touches the machine: what it writes lies in a tmpfs, its network is its own, and the interpreter, its
packages and the sources are bound in read-only under /opt, because a service user may not read them where they lie. The
store runs outside; its unix socket is bound in.
"""

import ctypes
import os
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tomli_w

ROOT = Path(__file__).resolve().parents[2]
AGENT = "nebula-agent.service"
PROXY = "nebula-proxy.service"
SOCKET = "nebula-proxy.socket"
_CLONE_NEWNET = 0x40000000
#: Services of the machine that must not start inside.
_MASKED = (
    "redis-server",
    "redis-sentinel",
    "ssh",
    "docker",
    "containerd",
    "nginx",
    "haproxy",
    "prometheus",
    "docker-registry",
)


def why_not() -> str | None:
    if os.getuid() != 0:
        return "needs root"
    missing = [name for name in ("systemd-nspawn", "nsenter", "systemctl") if shutil.which(name) is None]
    return f"{', '.join(missing)} is not installed" if missing else None


class Machine:
    """Booted by `boot`, gone after `close`."""

    def __init__(self, directory: Path, store_socket: Path) -> None:
        self._base = directory
        self._mount = directory / "m"
        self._store = store_socket.parent
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.state = Path("/var/lib/nebula-agent")

    def boot(self, files: dict[str, str]) -> None:
        """Boots with these files, by path; starts the agent's unit. The proxy's wait until somebody starts them."""
        self._overlay()
        self._furnish()
        for path, text in files.items():
            self.write(path, text)
        python = Path(sys.base_prefix)
        command = [
            *(
                "systemd-nspawn",
                "-q",
                "-D",
                str(self._mount),
                "--boot",
                f"--machine=nebula-test-{os.getpid()}",
                "--register=no",
            ),
            *("--keep-unit", "--private-network", f"--bind-ro={python}:/opt/python", f"--bind-ro={ROOT}:/opt/nebula"),
            *(f"--bind-ro={site.getsitepackages()[0]}:/opt/site", f"--bind={self._store}:/run/nebula-store"),
            "systemd.unit=nebula-test.target",
        ]
        with (self._base / "nspawn.log").open("wb") as log:
            self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._leader = self._find_leader()
        self._wait_for_systemd()

    def _wait_for_systemd(self) -> None:
        deadline = time.monotonic() + 90
        command = ["nsenter", "-t", str(self._leader), "-a", "systemctl", "show", AGENT, "--property", "ActiveState"]
        while subprocess.run(command, capture_output=True, check=False, timeout=30).returncode:
            assert time.monotonic() < deadline, (self._base / "nspawn.log").read_text()
            time.sleep(0.1)

    def _overlay(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(self._base)], check=True)
        for name in ("up", "work", "m"):
            (self._base / name).mkdir()
        layers = f"lowerdir=/,upperdir={self._base}/up,workdir={self._base}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self._mount)], check=True)

    def _furnish(self) -> None:
        units = self._mount / "etc/systemd/system"
        self.write("/etc/machine-id", "")
        for unit in (AGENT, PROXY, SOCKET):
            shutil.copy(ROOT / "deploy" / unit, units / unit)
        self.write(
            "/etc/systemd/system/nebula-test.target",
            f"[Unit]\nRequires=basic.target {AGENT} dbus.socket\nAfter=basic.target\nAllowIsolate=yes\n",
        )
        for name in _MASKED:
            link = units / f"{name}.service"
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        version = sysconfig.get_python_version()
        self.write("/opt/venv/pyvenv.cfg", "home = /opt/python/bin\ninclude-system-site-packages = false\n")
        self.write(f"/opt/venv/lib/python{version}/site-packages/nebula.pth", "/opt/site\n/opt/nebula\n")
        (self._mount / "opt/venv/bin").mkdir()
        (self._mount / "opt/venv/bin/python").symlink_to(f"/opt/python/bin/python{version}")
        for program in ("agent", "proxy"):
            self.write(
                f"/usr/bin/nebula-{program}",
                "#!/bin/sh\nexport LD_LIBRARY_PATH=/opt/python/lib\n"
                f'exec /opt/venv/bin/python -m nebula_{program} "$@"\n',
                mode=0o755,
            )
        if subprocess.run(["id", "nebula"], capture_output=True, check=False).returncode:
            command = ["useradd", "--root", str(self._mount), "--system", "--home-dir", "/var/lib/nebula", "nebula"]
            subprocess.run(command, check=True, capture_output=True)

    def watch_closely(self, unit: str) -> None:
        """From its next start on quicker than in the field, so that a test need not wait long for a hung loop.

        Not in other tests: a busy machine may keep a sound loop waiting as long.
        """
        self.write(self._dropin(unit), "[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\n")
        self.run("systemctl", "daemon-reload")

    def watch_as_usual(self, unit: str) -> None:
        """From its next start on."""
        (self._mount / self._dropin(unit)).unlink()
        self.run("systemctl", "daemon-reload")

    @staticmethod
    def _dropin(unit: str) -> str:
        return f"etc/systemd/system/{unit}.d/test.conf"

    def configure(self, program: str, settings: dict[str, object]) -> None:
        self.write(f"/etc/nebula/{program}.toml", tomli_w.dumps(settings))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self._mount / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def exists(self, path: str) -> bool:
        return (self._mount / path.lstrip("/")).exists()

    def _find_leader(self) -> int:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._nspawn.poll() is None, (self._base / "nspawn.log").read_text()
            for pid in children.read_text().split():
                if _is_first(pid):
                    return int(pid)
            time.sleep(0.05)
        raise AssertionError("the machine has no first process")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, (
            f"{command}: {done.stdout}{done.stderr}\n{self.journal()}{self.journal(PROXY)}"
        )
        return done.stdout.strip()

    def journal(self, unit: str = AGENT, *options: str) -> str:
        """The last lines of a unit."""
        options = options or ("-n", "60")
        command = ["nsenter", "-t", str(self._leader), "-a", "journalctl", "-u", unit, "--no-pager", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    def show(self, name: str, unit: str = AGENT) -> str:
        return self.run("systemctl", "show", unit, "--property", name, "--value")

    def dial(self, port: int) -> socket.socket:
        """A connection to a port inside. A socket stays in the network it was made in, wherever its owner goes."""
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(self._dial, port).result(90)

    def _dial(self, port: int) -> socket.socket:
        # The thread ends with its executor: nothing else ever runs in the network it moved to.
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{self._leader}/ns/net").open("rb") as inside:
            if libc.setns(inside.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        dialled = socket.create_connection(("127.0.0.1", port), 60)
        dialled.setblocking(False)
        return dialled

    def alive(self, pid: int) -> bool:
        """A process by its number inside."""
        return self.run("sh", "-c", f"kill -0 {pid} && echo yes || true") == "yes"

    def close(self) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            subprocess.run(
                ["nsenter", "-t", str(self._leader), "-a", "systemctl", "poweroff", "--force"],
                capture_output=True, check=False, timeout=30,
            )  # fmt: skip
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(10)
        for path in (self._mount, self._base):
            subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def _is_first(pid: str) -> bool:
    """Whether it is the first process of a machine: its parent's first child only makes the machine's mounts, and ends."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[2:]
    return inside == ["1"]


def require() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no systemd machine: {reason}")
