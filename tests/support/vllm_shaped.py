"""A program in the shape of `vllm serve`: the simulated engine as parent and EngineCore, with the rest of the family around it.

    vllm serve → resource_tracker               all of one session and process group
               → EngineCore (the simulator's child) → Worker

As measured on vLLM (engines, 2.8): nobody asks to be killed with the parent, titles are written over environments (so no marker
can be read there), SIGTERM is for the parent alone, and Worker and EngineCore map `psm_*` and `sem.mp-*` files that nobody
removes after a SIGKILL. A Worker holds "device memory": a file of the GPU ledger, open as long as it lives. Who maps shared
memory has written there which.
"""

import stat
import sys
from pathlib import Path

#: Worker and resource_tracker: no environment, no interest in signals meant for others, a shared memory file of its own.
_MEMBER = """
import mmap, os, signal, sys, time
name, ledger = sys.argv[1], sys.argv[2]
if name == "Worker":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = "/dev/shm/psm_" + os.urandom(4).hex()
    file = open(path, "w+b")
    file.truncate(65536)
    kept = mmap.mmap(file.fileno(), 65536)
held = open(f"{ledger}/{os.getpid()}", "w")
if name == "Worker":
    print(path, file=held, flush=True)
print(name, "up", flush=True)
os.close(1)
while True:
    time.sleep(60)
"""

_PROGRAM = """#!{python}
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
words = sys.argv[1:]
assert words[0] == "serve"
said = dict(zip(words[2::2], words[3::2]))
rest = words[2:]
trouble = None
if "--trouble" in rest:
    at = rest.index("--trouble")
    trouble = rest[at + 1]
    del rest[at : at + 2]
rest = [word for word in rest if word not in ("--enforce-eager",)]
ledger = {ledger!r}
key = os.environ.get("VLLM_API_KEY")
if key:
    path = os.environ["TMPDIR"] + "/key"
    with open(path, "w") as file:
        file.write(key)
    rest += ["--api-key-file", path]
# The socket that vLLM leaves in its temporary folder.
open(os.environ["TMPDIR"] + "/11111111-2222-3333-4444-555555555555", "w").close()
for name in ("resource_tracker", "Worker"):
    child = subprocess.Popen(
        [sys.executable, "-c", {member!r}, name, ledger], env={{}}, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    child.stdout.readline()
    child.returncode = 0
if trouble == "oom":
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB", flush=True)
    sys.exit(1)
from nebula_agent.simulator import core
from nebula_agent.simulator.process import main
leak = core.leak_shared_memory
def told():
    # In EngineCore: what it maps stands in the ledger too.
    kept = leak()
    with open("/proc/self/maps") as maps, open(f"{ledger}/{{os.getpid()}}", "w") as file:
        file.writelines(line.split()[-1] + "\\n" for line in maps if "/dev/shm/" in line)
    return kept
core.leak_shared_memory = told
sys.exit(main(["--preset", "tiny", "--death-exit-seconds", "1.0", "--fault", "shm-leak", *rest]))
"""


class VllmShaped:
    """The program, and the ledger of who holds memory of the GPU that does not exist."""

    def __init__(self, directory: Path) -> None:
        self.ledger = directory / "ledger"
        self.ledger.mkdir()
        self.program = directory / "vllm"
        root = str(Path(__file__).parents[2])
        text = _PROGRAM.format(python=sys.executable, root=root, member=_MEMBER, ledger=str(self.ledger))
        self.program.write_text(text)
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def holders(self) -> dict[int, str]:
        """Processes that hold memory: pid and state. One that is gone holds nothing."""
        found = {}
        for entry in self.ledger.iterdir():
            try:
                state = Path(f"/proc/{entry.name}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                found[int(entry.name)] = state
        return found

    def shared_memory(self) -> set[str]:
        """Files in /dev/shm that members made and that are still there. Others' are none of this: tests run beside each other."""
        named = {line for entry in self.ledger.iterdir() for line in entry.read_text().splitlines()}
        return {path for path in named if Path(path).exists()}
