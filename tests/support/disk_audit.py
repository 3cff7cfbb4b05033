"""`python -m tests.support.disk_audit FILE run …`: nebula-agent, and in FILE every disk access that its event loop made itself.

An access on the loop's thread stops reports, probes and the watchdog for as long as the disk takes, and a disk that hangs takes
for ever. Armed with the first report (what comes before may wait for its disk) until the loop has ended. Seen are Python's audit
events of files, folders, programs and imports, and the calls that have none (stat, access, readlink, statvfs, fsync). One JSON
object per access and stack: `{"what", "path", "stack"}`, the innermost frame last.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

#: The kernel's own answers: no disk stands behind them.
KERNEL = ("/proc", "/sys/", "/dev/null", "/dev/urandom", "/dev/kmsg")
_EVENTS = frozenset(
    {
        *("open", "import", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty", "os.system"),
        *(
            "os.listdir",
            "os.scandir",
            "os.walk",
            "os.fwalk",
            "os.mkdir",
            "os.rmdir",
            "os.remove",
            "os.rename",
            "os.link",
        ),
        *(
            "os.symlink",
            "os.truncate",
            "os.chmod",
            "os.chown",
            "os.utime",
            "os.listxattr",
            "os.getxattr",
            "os.setxattr",
        ),
        *("os.chflags", "os.lockf", "fcntl.flock", "fcntl.lockf", "shutil.rmtree", "shutil.copyfile", "shutil.move"),
        *(
            "glob.glob",
            "pathlib.Path.glob",
            "pathlib.Path.rglob",
            "tempfile.mkstemp",
            "tempfile.mkdtemp",
            "mmap.__new__",
        ),
    }
)
_UNHEARD = ("stat", "lstat", "access", "readlink", "statvfs", "fsync", "fdatasync", "open", "fstat", "ftruncate")
_OURS = str(Path(__file__).resolve().parents[2])


class Audit:
    """Writes down what the thread of its maker does with disks while it is armed."""

    def __init__(self, file: Path) -> None:
        self._out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._thread = threading.get_ident()
        self._busy = False
        self._seen: set[str] = set()
        self.armed = False

    def install(self) -> None:
        sys.addaudithook(self._heard)
        for name in _UNHEARD:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Any) -> Any:
        def watched(*given: Any, **named: Any) -> Any:
            if self.armed:
                self._note(f"os.{name}", given[0] if given else named.get("path"))
            return call(*given, **named)

        return watched

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if self.armed and event in _EVENTS:
            self._note(event, given[0] if given else None)

    def _note(self, what: str, path: object) -> None:
        if threading.get_ident() != self._thread or self._busy:
            return
        self._busy = True
        try:
            if isinstance(path, int):
                path = os.path.realpath(f"/proc/self/fd/{path}") if path >= 0 else None
            text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
            if text.startswith((*KERNEL, "pipe:", "socket:", "anon_inode:")):
                return
            stack = [
                f"{frame.filename.removeprefix(_OURS + '/')}:{frame.lineno} {frame.name}"
                for frame in traceback.StackSummary.extract(traceback.walk_stack(None), lookup_lines=False)
                if frame.filename != __file__
            ][::-1]
            line = json.dumps({"what": what, "path": text, "stack": stack[-25:]})
            if line not in self._seen:
                self._seen.add(line)
                os.write(self._out, f"{line}\n".encode())
        finally:
            self._busy = False


def asked(file: Path) -> str:
    """What was found, in words: nothing, if all is well."""
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return "\n\n".join(f"{one['what']} {one['path']}\n  " + "\n  ".join(one["stack"][-8:]) for one in found)


def main() -> int:
    from nebula_agent.cli import main as agent
    from nebula_agent.loops.reporter import Reporter

    audit = Audit(Path(sys.argv.pop(1)))
    audit.install()
    report_once = Reporter.report_once

    async def armed_by(self: Reporter, **said: bool) -> None:
        await report_once(self, **said)
        audit.armed = True

    Reporter.report_once = armed_by  # type: ignore[method-assign]
    status = agent()
    audit.armed = False
    return status


if __name__ == "__main__":
    sys.exit(main())
