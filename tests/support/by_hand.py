"""Containers as somebody at a shell starts them: `docker run`, no label of Nebula's, an image of its own entry point.

The images are the simulated engine's with other clothes: one with `ENTRYPOINT ["vllm", "serve"]` as vllm/vllm-openai has
it now, one with `ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]` as it had before.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.support.docker import SIMULATOR, DockerDaemon
from tests.support.engine_process import VLLM_MODEL, VLLM_VENV

NEW_VLLM = "vllm/vllm-openai:v0.32.0"
OLD_VLLM = "vllm/vllm-openai:v0.6.3"

_MAIN = """
import sys
from nebula_agent.simulator.process import main
words = sys.argv[1:]
if words[:1] == ["serve"]:
    del words[0]
if "--model" in words:
    at = words.index("--model")
    words[at : at + 2] = [words[at + 1]]
if "--host" not in words:
    words += ["--host", "0.0.0.0"]
sys.exit(main([*words, "--preset", "instant"]))
"""


def make_vllm_images(daemon: DockerDaemon) -> None:
    """Two images in the manner of vLLM's own, on top of the simulated engine's."""
    client = daemon.client()
    try:
        known = {tag for image in client.images() for tag in image.get("RepoTags") or ()}
        if NEW_VLLM in known and OLD_VLLM in known:
            return
        made = client.create_container(SIMULATOR, command=["true"])["Id"]
        files = {
            "usr/local/bin/vllm": f"#!{sys.base_prefix}/bin/python3\n{_MAIN}",
            "app/vllm/__init__.py": "",
            "app/vllm/entrypoints/__init__.py": "",
            "app/vllm/entrypoints/openai/__init__.py": "",
            "app/vllm/entrypoints/openai/api_server.py": _MAIN,
        }
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text), 0o755
                tar.addfile(entry, io.BytesIO(text.encode()))
        client.put_archive(made, "/", archive.getvalue())
        entries = {
            NEW_VLLM: ["vllm", "serve"],
            OLD_VLLM: ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        }
        path = f"ENV PATH=/usr/local/bin:{sys.base_prefix}/bin:/bin"
        for tag, entry_point in entries.items():
            repository, _, version = tag.rpartition(":")
            changes = [path, f"ENTRYPOINT {json.dumps(entry_point)}"]
            client.commit(made, repository, version, changes=changes)
        client.remove_container(made, force=True)
    finally:
        client.close()


class ByHand:
    """The `docker` command of somebody at a shell."""

    def __init__(self, daemon: DockerDaemon) -> None:
        self.daemon = daemon

    def run(self, image: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """`docker run -d OPTIONS IMAGE WORDS`; the container's id."""
        return self("run", "-d", *options, image, *words)

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["docker", "-H", self.daemon.address, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def inspect(self, container: str) -> dict[str, Any]:
        [found] = json.loads(self("inspect", container))
        return dict(found)

    def state(self, container: str) -> dict[str, Any]:
        return dict(self.inspect(container)["State"])

    def run_real_vllm(self, port: int, *words: str, name: str) -> str:
        """vLLM itself on the CPU, on the node's own network: the venv, its Python and the libraries are the node's, read-only."""
        seen = [VLLM_VENV.resolve(), Path(sys.base_prefix), Path("/usr")]
        libraries = [Path("/usr/lib") / one.name for one in Path("/usr/lib").glob("*-linux-gnu")]
        mounts = [("-v", f"{path}:{path}:ro") for path in seen]
        mounts += [("-v", f"{path}:/lib/{path.name}:ro") for path in libraries]
        env = {
            "PATH": f"{VLLM_VENV.resolve()}/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        return self.run(
            SIMULATOR,
            *("serve", "/weights", "--port", str(port), "--enforce-eager", *words),
            options=(
                *("--name", name, "--network", "host", "--shm-size", "1g", "--entrypoint", "vllm"),
                *(word for pair in mounts for word in pair),
                *("-v", f"{VLLM_MODEL.resolve()}:/weights:ro"),
                *(word for name, value in env.items() for word in ("-e", f"{name}={value}")),
            ),
        )
