"""The stub of NVIDIA's library, built with gcc, for the real binding to load."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("stub_nvml.c")


class StubNvml:
    """A folder for LD_LIBRARY_PATH and a file that holds the mood."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for the NVML stub")
        self.directory = directory
        self._mood = directory / "mood"
        self.set("ok")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(directory / "libnvidia-ml.so.1"), str(SOURCE)],
            check=True,
            timeout=60,
        )

    def set(self, mood: str) -> None:
        draft = self._mood.with_suffix(".draft")
        draft.write_text(mood)
        draft.replace(self._mood)

    def env(self, pid: int | None = None) -> dict[str, str]:
        """For the environment of a process that shall see the stub."""
        found = {
            "LD_LIBRARY_PATH": f"{self.directory}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "NEBULA_STUB_NVML": str(self._mood),
        }
        return found if pid is None else {**found, "NEBULA_STUB_NVML_PID": str(pid)}
