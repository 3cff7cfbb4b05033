"""Command lines and environments: what an operator wrote reaches the engine, what the agent must keep stays its own."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.engines.base import Launch, Program
from nebula_agent.engines.options import options
from nebula_agent.engines.registry import ENGINES
from nebula_core.records.deployment import DeploymentSpec


def launch(
    engine="vllm",
    *,
    gpus=("GPU-a", "GPU-b"),
    key="s3cret",
    version=None,
    program="/opt/bin/engine",
    vendor="nvidia",
    gpu_indexes=(),
    **spec,
):
    values = {"source": "Qwen/Qwen2.5-7B", "engine": engine, **spec}
    return Launch(
        replica="chat-r1",
        model="chat",
        spec=DeploymentSpec.model_validate(values),
        program=Program(Path(program), version),
        gpus=gpus,
        host="10.0.0.1",
        ports=tuple(range(20000, 20000 + ENGINES[engine].ports_needed)),
        key=key,
        key_file=Path("/keys/chat-r1.key"),
        term_seconds=10.0,
        vendor=vendor,
        gpu_indexes=gpu_indexes,
    )


def words(command):
    return " ".join(command.argv)


def test_vllm():
    command = ENGINES["vllm"].command(launch(args={"max-model-len": 8192, "gpu_memory_utilization": 0.9, "x": False}))
    assert words(command) == (
        "/opt/bin/engine serve Qwen/Qwen2.5-7B --host 10.0.0.1 --port 20000 --served-model-name chat "
        "--tensor-parallel-size 2 --shutdown-timeout 8 --max-model-len 8192 --gpu-memory-utilization 0.9 --no-x"
    )
    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert command.env["VLLM_PORT"] == "20001"
    assert "HF_HUB_OFFLINE" not in command.env
    assert (command.env["VLLM_DP_MASTER_PORT"], command.env["MASTER_PORT"]) == ("20006", "20007")


def test_vllm_without_a_gpu_runs_on_the_cpu_from_a_folder():
    command = ENGINES["vllm"].command(launch(gpus=(), source="/models/tiny"))
    assert "--enforce-eager" in command.argv
    assert "--tensor-parallel-size" not in command.argv
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert command.env["HF_HUB_OFFLINE"] == "1"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_vllm_options_an_operator_set_are_not_set_twice():
    command = ENGINES["vllm"].command(launch(args={"tensor-parallel-size": 1, "shutdown_timeout": 3}))
    assert command.argv.count("--tensor-parallel-size") == 1
    assert command.argv.count("--shutdown-timeout") == 1


def test_an_old_vllm_is_not_given_an_option_it_does_not_know():
    assert "--shutdown-timeout" not in ENGINES["vllm"].command(launch(version=(0, 11, 2))).argv
    assert "--shutdown-timeout" in ENGINES["vllm"].command(launch(version=(0, 32, 0))).argv


def test_vllm_adapters():
    command = ENGINES["vllm"].command(launch(adapters=({"name": "sql", "source": "/lora/sql"},)))
    assert "--enable-lora --lora-modules sql=/lora/sql" in words(command)


def test_sglang_takes_its_key_from_a_file_and_shows_its_metrics():
    command = ENGINES["sglang"].command(launch("sglang", program="/venv/bin/python3"))
    assert words(command).startswith("/venv/bin/python3 -m sglang.launch_server --model-path")
    assert "--enable-metrics" in command.argv
    assert "--tp-size 2" in words(command)
    assert "--config /keys/chat-r1.key" in words(command)
    assert words(ENGINES["sglang"].command(launch("sglang"))).startswith("/opt/bin/engine serve ")


def test_llamacpp_file_or_hub():
    assert "-m /m/a.gguf" in words(ENGINES["llamacpp"].command(launch("llamacpp", source="/m/a.gguf")))
    assert "-hf org/a-GGUF" in words(ENGINES["llamacpp"].command(launch("llamacpp", source="org/a-GGUF")))
    assert "--n-gpu-layers" not in ENGINES["llamacpp"].command(launch("llamacpp", gpus=())).argv


def test_pooling_engines_are_probed_by_an_embedding():
    for kind, args in (
        ("vllm", {"runner": "pooling"}),
        ("sglang", {"is-embedding": True}),
        ("llamacpp", {"embeddings": True}),
    ):
        spec = DeploymentSpec.model_validate({"source": "a", "args": args})
        assert ENGINES[kind].probe("chat", spec).path == "/v1/embeddings"
        assert ENGINES[kind].probe("chat", DeploymentSpec(source="a")).path == "/v1/completions"


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True),
        st.text(max_size=12) | st.integers() | st.floats(allow_nan=False) | st.booleans(),
        max_size=6,
    )
)
def test_no_value_can_pass_for_an_option(args):
    made = options(args, falsehood="omit")
    asked = {f"--{name.replace('_', '-')}" for name in args}
    assert {word.partition("=")[0] for word in made if word.startswith("-")} <= asked
