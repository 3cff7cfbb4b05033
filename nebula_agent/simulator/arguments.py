"""The command line of the simulated engine: vLLM's options that matter, the preset, the faults."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nebula_agent.simulator.faults import Faults, parse_faults
from nebula_agent.simulator.scheduler import Limits
from nebula_agent.simulator.timing import PRESETS, Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorSettings:
    """Everything one simulated engine is told; nothing is read from anywhere else later."""

    host: str
    port: int
    names: tuple[str, ...]
    #: Names of adapters: answered under, like the names above; nothing is loaded.
    adapters: tuple[str, ...]
    preset_name: str
    preset: Preset
    limits: Limits
    max_model_len: int
    max_num_queued_reqs: int | None
    speed: float
    seed: int
    pooling: bool
    auto_tools: bool
    api_keys: tuple[str, ...]
    shutdown_timeout_seconds: float
    death_exit_seconds: float
    dev_mode: bool
    faults: Faults
    allow_request_faults: bool
    access_log: bool
    #: Paths whose requests leave no line in the access log.
    silent_paths: frozenset[str]


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> SimulatorSettings:
    """Reads the command line; a mistake ends the program with argparse's message and status 2."""
    environment = os.environ if environment is None else environment
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        faults = parse_faults(given.fault)
    except ValueError as error:
        parser.error(str(error))
    preset = PRESETS[given.preset]
    block_size = given.block_size or preset.block_size
    num_blocks = given.num_gpu_blocks or preset.num_blocks * preset.block_size // block_size
    max_model_len = given.max_model_len or preset.max_model_len
    # One block is the null block and holds nothing, as in vLLM: usage counts the others.
    if (num_blocks - 1) * block_size < max_model_len:
        parser.error(
            f"{num_blocks} blocks of {block_size} tokens cannot hold one request of {max_model_len} tokens: "
            f"raise --num-gpu-blocks to {-(-max_model_len // block_size) + 1} or lower --max-model-len"
        )
    if given.speed <= 0:
        parser.error("--speed must be above 0")
    names = tuple(name for text in given.served_model_name for name in text.split(",") if name)
    try:
        keys = _api_keys(given.api_key_file, environment)
    except OSError as error:
        parser.error(f"--api-key-file: {error}")
    return SimulatorSettings(
        host=given.host,
        port=given.port,
        names=names or ((given.model,) if given.model else ("sim",)),
        adapters=tuple(module.partition("=")[0] for module in given.lora_modules),
        preset_name=given.preset,
        preset=preset,
        limits=Limits(
            max_num_batched_tokens=given.max_num_batched_tokens or preset.max_num_batched_tokens,
            max_num_seqs=given.max_num_seqs or preset.max_num_seqs,
            num_blocks=num_blocks - 1,
            block_size=block_size,
            prefix_caching=given.enable_prefix_caching,
        ),
        max_model_len=max_model_len,
        max_num_queued_reqs=given.max_num_queued_reqs,
        speed=given.speed,
        seed=given.seed,
        pooling=given.runner == "pooling",
        auto_tools=given.enable_auto_tool_choice,
        api_keys=keys,
        shutdown_timeout_seconds=given.shutdown_timeout,
        death_exit_seconds=given.death_exit_seconds,
        dev_mode=given.dev_mode or environment.get("VLLM_SERVER_DEV_MODE") == "1",
        faults=faults,
        allow_request_faults=given.allow_request_faults,
        access_log=given.access_log,
        silent_paths=frozenset(path for path in given.disable_access_log_for_endpoints.split(",") if path),
    )


def _api_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    keys = [environment.get("VLLM_API_KEY", "")]
    if file is not None:
        keys.extend(file.read_text(encoding="utf-8").split())
    return tuple(key for key in keys if key)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nebula-agent simulate-engine",
        description="A simulated engine: vLLM on the outside, prepared sentences inside.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", help="the name of the model, if --served-model-name does not say it")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 takes a free port")
    add("--served-model-name", nargs="+", default=[], metavar="NAME")
    add("--preset", choices=sorted(PRESETS), default="tiny", help="how fast, how big")
    add("--speed", type=float, default=1.0, metavar="FACTOR", help="divides every step's time")
    add("--max-model-len", type=_positive)
    add("--max-num-seqs", type=_positive)
    add("--max-num-batched-tokens", type=_positive)
    add("--block-size", type=_positive)
    add("--num-gpu-blocks", "--num-gpu-blocks-override", type=_positive)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--max-num-queued-reqs", type=int, default=None, help="open requests beyond this are turned away")
    add("--enable-lora", action="store_true")
    add("--lora-modules", nargs="*", default=[], metavar="NAME=SOURCE", help="adapters: names to answer under")
    add("--enable-auto-tool-choice", action="store_true")
    add("--runner", choices=("generate", "pooling"), default="generate")
    add("--seed", type=int, default=0)
    add("--api-key-file", type=Path, help="one key a line; /v1/* then needs one of them")
    add("--shutdown-timeout", type=float, default=0.0, metavar="SECONDS")
    add("--death-exit-seconds", type=float, default=7.0, metavar="SECONDS")
    add("--dev-mode", action="store_true")
    add("--fault", action="append", default=[], metavar="KIND[=ARG]", help="see nebula_agent/simulator/__init__.py")
    add("--allow-request-faults", action="store_true", help="obey the field nebula_fault in request bodies")
    add("--disable-access-log-for-endpoints", default="", metavar="PATH[,PATH]")
    add("--access-log", action=argparse.BooleanOptionalAction, default=True)
    return parser
