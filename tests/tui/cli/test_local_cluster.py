"""What `nebula up` decides before it starts anything."""

import os
from pathlib import Path

import psutil
import pytest

from nebula_tui.cli.children import Child, ChildSpec, describe_exit, python
from nebula_tui.cli.errors import CommandError
from nebula_tui.cli.local_cluster import ENGINE_PORTS, PORTS_PER_NODE, choose_model, first_engine_port
from tests.support.up import eventually


def test_sim_is_the_simulated_engine():
    model = choose_model("demo=sim", real_gpus=False)
    assert (model.name, model.engine, model.gpus) == ("demo", "simulated", 1)


def test_two_clusters_of_a_machine_mostly_begin_at_other_ports():
    firsts = [first_engine_port(Path(f"/tmp/{number}"), 2) for number in range(100)]
    assert firsts == [first_engine_port(Path(f"/tmp/{number}"), 2) for number in range(100)]
    assert len(set(firsts)) > 20
    assert all(first in ENGINE_PORTS and first + 2 * PORTS_PER_NODE - 1 in ENGINE_PORTS for first in firsts)
    assert first_engine_port(Path("/tmp/0"), 64) == ENGINE_PORTS[0], "too many for the range: from its beginning on"


def test_a_folder_takes_the_engine_on_path(tmp_path, monkeypatch):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NEBULA_VLLM", raising=False)
    folder = tmp_path / "weights"
    folder.mkdir()
    assert choose_model(f"chat={folder}", real_gpus=False) == choose_model(f"chat={folder}/", real_gpus=False)
    model = choose_model(f"chat={folder}", real_gpus=True)
    assert (model.engine, model.source, model.gpus) == ("vllm", str(folder), 1)


def test_a_gguf_wants_llama_server(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NEBULA_LLAMACPP", raising=False)
    weights = tmp_path / "tiny.gguf"
    weights.touch()
    with pytest.raises(CommandError) as caught:
        choose_model(f"chat={weights}", real_gpus=False)
    assert "llama-server" in caught.value.hint
    monkeypatch.setenv("NEBULA_LLAMACPP", "/opt/llama-server")
    assert choose_model(f"chat={weights}", real_gpus=False).engine == "llamacpp"


def test_an_image_of_this_machines_docker_does_where_no_program_is(tmp_path, monkeypatch):
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\necho '<none>:<none>'; echo vllm/vllm-openai:v0.32.0; echo ghcr.io/ggml-org/llama.cpp:server\n"
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    for name in ("NEBULA_VLLM", "NEBULA_SGLANG", "NEBULA_LLAMACPP"):
        monkeypatch.delenv(name, raising=False)
    model = choose_model("chat=Qwen/x", real_gpus=True)
    assert (model.engine, model.image) == ("vllm", "vllm/vllm-openai:v0.32.0")
    weights = tmp_path / "tiny.gguf"
    weights.touch()
    assert choose_model(f"chat={weights}", real_gpus=False).image == "ghcr.io/ggml-org/llama.cpp:server"
    # An image for GPUs is of no use without one.
    with pytest.raises(CommandError):
        choose_model("chat=Qwen/x", real_gpus=False)
    docker.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(CommandError):
        choose_model("chat=Qwen/x", real_gpus=True)


@pytest.mark.parametrize("text", ["chat", "=sim", "chat=", ""])
def test_what_is_not_name_and_source_is_refused(text):
    with pytest.raises(CommandError):
        choose_model(text, real_gpus=False)


async def test_a_child_that_dies_is_started_again_and_stopped_whole(tmp_path):
    said = []
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    child = Child(ChildSpec("c", python("-c", code), tmp_path / "c.log"), said.append)
    await child.start()
    first = child.pid
    os.kill(first, 9)
    await _until(lambda: child.restarts == 1 and child.alive)
    assert child.pid != first
    assert "SIGKILL" in said[0]
    group = child.pid
    await _until(lambda: len(psutil.Process(group).children()) == 1)
    child.terminate()
    await child.stopped(5)
    assert not child.alive
    eventually(lambda: not _alive(group), "the group is gone")


async def _until(ask):
    import asyncio

    async with asyncio.timeout(60):
        while not ask():
            await asyncio.sleep(0.02)


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("code", "text"), [(0, "exit 0"), (1, "exit 1"), (-9, "SIGKILL"), (None, "still running")])
def test_exits_are_told_in_words(code, text):
    assert describe_exit(code) == text
