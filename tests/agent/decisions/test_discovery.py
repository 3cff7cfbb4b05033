"""What looks like an engine, and what does not; what a deployment of it would say; who listens where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.discovery import model_names, read_command_line, spec_of
from nebula_agent.decisions.listeners import listeners

ENGINES = [
    (
        "/usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen2.5-7B --port 8001 --max-model-len 8192",
        ("vllm", "Qwen/Qwen2.5-7B", (), 8001, {"max-model-len": 8192}),
    ),
    ("vllm serve /models/m --served-model-name chat big", ("vllm", "/models/m", ("chat", "big"), 8000, {})),
    (
        "python3.12 -u -X dev -m vllm.entrypoints.openai.api_server --model=m --gpu-memory-utilization 0.9",
        ("vllm", "m", (), 8000, {"gpu-memory-utilization": 0.9}),
    ),
    ("python -m vllm.entrypoints.cli.main serve m --enforce-eager", ("vllm", "m", (), 8000, {"enforce-eager": True})),
    (
        "/opt/venv/bin/python /opt/venv/lib/python3.11/site-packages/vllm/entrypoints/openai/api_server.py --model m",
        ("vllm", "m", (), 8000, {}),
    ),
    (
        "python3 -m sglang.launch_server --model-path meta-llama/L --host 0.0.0.0 --port 30001 --mem-fraction-static 0.8",
        ("sglang", "meta-llama/L", (), 30001, {"mem-fraction-static": 0.8}),
    ),
    (
        "/app/llama-server -m /models/x.gguf -c 4096 -ngl 99 --port 8081 --alias tiny,small",
        ("llamacpp", "/models/x.gguf", ("tiny", "small"), 8081, {"ctx-size": 4096, "gpu-layers": 99}),
    ),
    ("llama-server -hf org/repo:Q4_K_M", ("llamacpp", "org/repo:Q4_K_M", (), 8080, {})),
    (
        "xllm --model=/models/q --port=9977 --max_memory_utilization=0.86",
        ("xllm", "/models/q", (), 9977, {"max-memory-utilization": 0.86}),
    ),
    (
        "python -m nebula_agent.simulator --port 8123 --served-model-name mine --preset instant",
        ("simulated", None, ("mine",), 8123, {"preset": "instant"}),
    ),
]


@pytest.mark.parametrize(("words", "told"), ENGINES, ids=[words[:40] for words, _ in ENGINES])
def test_engines_are_known_by_their_command_lines(words: str, told: tuple[object, ...]) -> None:
    found = read_command_line(words.split())
    assert found is not None
    assert (found.engine, found.source, found.names, found.port, dict(found.args)) == told


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [""],
        ["bash", "-c", "vllm serve m"],
        ["sh", "/usr/local/bin/vllm", "serve", "m"],
        ["tini", "--", "vllm", "serve", "m"],
        ["vim", "vllm.py"],
        ["python3", "-c", "import vllm"],
        ["python3", "-m", "vllm.entrypoints.openai"],
        ["python3", "-m"],
        ["python3"],
        ["vllm", "bench", "serve"],
        ["vllm", "--version"],
        ["grep", "llama-server"],
        ["VLLM::EngineCore"],
        ["nebula-agent", "run"],
        ["python3", "-m", "nebula_agent", "run", "--config", "x"],
    ],
)
def test_what_only_mentions_an_engine_is_none(argv: list[str]) -> None:
    assert read_command_line(argv) is None


@given(st.lists(st.text(max_size=12), max_size=12))
def test_any_command_line_can_be_read(words: list[str]) -> None:
    for head in (["vllm", "serve"], ["llama-server"], ["xllm"], ["python3", "-m", "sglang.launch_server"]):
        found = read_command_line([*head, *words])
        assert found is not None
        assert 0 < found.port < 65536
        spec_of(found, gpus=0, runtime="process")


def test_a_key_stays_where_it_stands() -> None:
    words = "vllm serve m --api-key sk-hidden --hf-token hf_hidden --ssl-key-password=pw --max-num-batched-tokens 64"
    found = read_command_line(words.split())
    assert found is not None
    spec = spec_of(found, gpus=1, runtime="process")
    assert found.key == "sk-hidden"
    assert spec is not None
    assert "hidden" not in f"{found!r} {spec!r} {found.left_out!r}"
    assert dict(spec.args) == {"max-num-batched-tokens": 64}
    assert found.left_out == ("hf-token", "ssl-key-password")


def test_a_deployment_of_it_says_what_its_command_line_says() -> None:
    words = "vllm serve Qwen/Q --port 8001 --lora-modules sql=org/sql poem=/p --no-enable-log-requests -tp 2 --config f"
    found = read_command_line(words.split())
    assert found is not None
    spec = spec_of(found, gpus=2, runtime="docker", image="vllm/vllm-openai:v0.11.0")
    assert spec is not None
    assert (spec.source, spec.gpus, spec.runtime, spec.image) == ("Qwen/Q", 2, "docker", "vllm/vllm-openai:v0.11.0")
    assert dict(spec.args) == {"no-enable-log-requests": True, "tensor-parallel-size": 2}
    assert [adapter.name for adapter in spec.adapters] == ["sql", "poem"]
    assert found.left_out == ("config",)
    assert model_names(("Qwen/Q", "sql", "poem"), found) == ("Qwen/Q",)
    assert model_names((), found) == ("Qwen/Q",)


def test_a_command_line_that_names_no_weights_has_no_deployment() -> None:
    found = read_command_line(["vllm", "serve", "--config", "serve.yaml"])
    assert found is not None
    assert spec_of(found, gpus=0, runtime="process") is None


_TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   3: broken
"""
_TCP6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F40 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4714 1 0
   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4715 1 0
   2: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4716 1 0
"""


def test_listeners_are_read_from_the_kernels_tables() -> None:
    found = listeners(_TCP, {8080, 8000}) + listeners(_TCP6, {8080, 8000, 8081})
    assert [(one.host, one.port, one.inode) for one in found] == [
        ("127.0.0.1", 8080, 4711),
        ("0.0.0.0", 8000, 4712),
        ("::", 8000, 4714),
        ("::1", 8080, 4715),
        ("127.0.0.1", 8081, 4716),
    ]
    assert [(one.everywhere, one.loopback) for one in found[:2]] == [(False, True), (True, False)]
