"""What every engine's command keeps to, whatever an operator wrote: a new engine is held to it by being in the registry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.engines.registry import ENGINES
from nebula_core.records.base import frozen_map
from tests.agent.engines.test_commands import launch, words

KINDS = sorted(ENGINES)
REAL = sorted(set(ENGINES) - {"simulated"})
#: How each engine says over how many GPUs the model is cut.
PARALLEL = {"vllm": "--tensor-parallel-size", "sglang": "--tp-size"}
VERSIONS = [None, (0, 8, 5), (0, 11, 0), (0, 17, 9), (0, 18, 0), (0, 32, 0)]

arguments = st.dictionaries(
    st.sampled_from(["max-model-len", "context_length", "seed", "quantization", "x-flag"]),
    st.integers(0, 9) | st.booleans() | st.sampled_from(["awq", "-5", "a b"]),
    max_size=4,
)


@pytest.mark.parametrize("kind", KINDS)
@given(args=arguments, gpus=st.integers(1, 8), version=st.sampled_from(VERSIONS), key=st.sampled_from([None, "s3cret"]))
def test_whatever_was_written(kind, args, gpus, version, key):
    engine = ENGINES[kind]
    ids = tuple(f"GPU-{number}" for number in range(gpus))
    asked = launch(kind, gpus=ids, key=key, version=version, args=args, source="/models/a.gguf")
    assert engine.why_unfit(asked.spec, gpus) is None
    command = engine.command(asked)
    said = words(command)
    # The key: nowhere to be listed, and somewhere when the engine takes one.
    assert "s3cret" not in said
    elsewhere = (command.key_file_content or "") + " ".join(command.env.values())
    assert ("s3cret" in elsewhere) == (key is not None and engine.takes_key)
    # Address and name are the agent's, and said once.
    assert "10.0.0.1" in said
    assert "20000" in said
    assert command.argv.count("--port") + said.count("--port=20000") <= 1
    # No option twice: engines take the last, or refuse.
    named = [word.partition("=")[0] for word in command.argv if word.startswith("--")]
    assert len(named) == len(set(named))
    # What was asked for is there.
    for name in args:
        plain = name.replace("_", "-")
        assert args[name] is False or f"--{plain}" in said.replace("_", "-")
    if kind in PARALLEL:
        assert (PARALLEL[kind] in command.argv) == (gpus > 1)


@pytest.mark.parametrize("kind", REAL)
def test_the_gpus_are_shown_as_their_maker_wants_it(kind):
    engine = ENGINES[kind]
    plain = launch(kind, source="/models/a.gguf")
    assert engine.command(plain).env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    for vendor, name in (("ascend", "ASCEND_RT_VISIBLE_DEVICES"), ("amd", "HIP_VISIBLE_DEVICES")):
        other = launch(kind, source="/models/a.gguf", vendor=vendor, gpu_indexes=(4, 5))
        env = engine.command(other).env
        assert env[name] == "4,5"
        assert "CUDA_VISIBLE_DEVICES" not in env


@pytest.mark.parametrize("kind", KINDS)
def test_ports_are_of_its_own_block(kind):
    command = ENGINES[kind].command(launch(kind, source="/models/a"))
    block = set(range(20000, 20000 + ENGINES[kind].ports_needed))
    numbers = [word.rpartition("=")[2].rpartition(":")[2] for word in command.argv]
    ports = {int(text) for text in (*numbers, *command.env.values()) if text.isdecimal() and len(text) == 5}
    assert ports <= block
    assert 20000 in ports


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp", "simulated"])
def test_adapters_reach_the_engine(kind):
    one = launch(kind, source="/m/a", adapters=({"name": "sql", "source": "/lora/sql"},))
    assert ENGINES[kind].why_unfit(one.spec, 2) is None
    assert "/lora/sql" in words(ENGINES[kind].command(one))


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("llamacpp", {"adapters": ({"name": "a", "source": "org/a"},)}, "GGUF"),
        ("llamacpp", {"adapters": ({"name": "a", "source": "/a"}, {"name": "b", "source": "/b"})}, "one adapter"),
        ("xllm", {"adapters": ({"name": "a", "source": "/a"},), "source": "/m"}, "no adapters"),
        ("xllm", {"source": "org/model"}, "folder"),
    ],
)
def test_what_an_engine_cannot_do_is_said_with_what_to_change(kind, changes, word):
    assert word in ENGINES[kind].why_unfit(launch(kind, **changes).spec, 1)


def test_xllm_wants_gpus():
    spec = launch("xllm", source="/m").spec
    assert "gpus" in ENGINES["xllm"].why_unfit(spec, 0)
    assert "at most 16" in ENGINES["xllm"].why_unfit(spec, 17)


def test_xllm_starts_one_rank_per_gpu(tmp_path):
    import subprocess

    program = tmp_path / "xllm"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o700)
    asked = launch(
        "xllm", program=str(program), source="/m", vendor="ascend", gpu_indexes=(0, 1), args={"block-size": 128}
    )
    command = ENGINES["xllm"].command(asked)
    # Reads until the last rank has closed its end, not only until rank 0 is done.
    ran = subprocess.run(command.argv, check=True, env={**command.env, "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE)
    lines = sorted(ran.stdout.decode().splitlines(), key=lambda line: line[-1])
    common = "--model=/m --model_id=chat --host=10.0.0.1 --nnodes=2 --master_node_addr=127.0.0.1:20016"
    for rank, line in enumerate(lines):
        assert line.startswith(common)
        assert f"--devices=npu:{rank} --port={20000 + rank} --node_rank={rank}" in line
        assert "--block_size=128" in line
        assert "--communication_backend=hccl" in line
    assert len(lines) == 2


def test_an_environment_of_the_node_cannot_open_the_development_endpoints():
    assert ENGINES["vllm"].command(launch()).env["VLLM_SERVER_DEV_MODE"] == "0"


def test_the_environment_of_a_launch_is_a_value():
    first, second = (ENGINES["vllm"].command(launch()) for _ in range(2))
    assert first == second
    assert isinstance(first.env, type(frozen_map({})))
