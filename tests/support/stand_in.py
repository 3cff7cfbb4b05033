"""A program in the place of vLLM: takes the words of `vllm serve`, and is the simulated engine from then on."""

import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, os, sys
words = sys.argv[1:]
said = dict(zip(words[2::2], words[3::2]))
if {seen!r}:
    with open({seen!r}, "w") as file:
        json.dump({{"source": words[1], "offline": os.environ.get("HF_HUB_OFFLINE"), "files": sorted(os.listdir(words[1]))}}, file)
argv = [sys.executable, "-m", "nebula_agent.simulator", "--preset", "instant"]
for name in ("--host", "--port", "--served-model-name"):
    argv += [name, said[name]]
os.execv(sys.executable, argv)
"""


def vllm_stand_in(folder: Path, *, seen: Path | None = None) -> Path:
    """The program, made in `folder`; in `seen` it notes the model it was given."""
    program = folder / "vllm"
    program.write_text(_PROGRAM.format(python=sys.executable, seen="" if seen is None else str(seen)))
    program.chmod(0o755)
    return program
