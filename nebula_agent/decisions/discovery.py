"""What looks like an engine: told from a command line, and from nothing else.

Only what looks like an engine is ever asked anything over HTTP. So a command line must say it by itself: the program, or
the module that Python runs. A shell that mentions `vllm serve`, an init that starts it, or an editor with such a file
open is none: the engine is the process those start.

    /usr/bin/python3 /usr/local/bin/vllm serve MODEL --port 8000      vllm (a script of its package)
    python -m vllm.entrypoints.openai.api_server --model MODEL        vllm (as its images start it)
    python -m sglang.launch_server --model-path MODEL --port 30000    sglang
    llama-server -m /models/x.gguf --port 8080                        llamacpp
    xllm --model /models/x --port 9977                                xllm
    python -m nebula_agent.simulator --port 8000                      simulated

What is read from it is what a deployment would say: source, options, adapters. Its address and names are its own, and
whatever looks like a secret is left where it stands.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from nebula_agent.decisions.policy import RESERVED_ARGS
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Adapter, ArgValue, DeploymentSpec

_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*[a-z]?")
#: Options of Python that take a word of their own.
_PYTHON_VALUED = frozenset({"-W", "-X", "--check-hash-based-pycs"})
#: Programs and modules, with the words that must follow.
_PROGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = frozen_map(
    {
        "vllm": ("vllm", ("serve",)),
        "sglang": ("sglang", ("serve",)),
        "llama-server": ("llamacpp", ()),
        "xllm": ("xllm", ()),
        "nebula-agent": ("simulated", ("simulate-engine",)),
    }
)
_MODULES: Mapping[str, tuple[str, tuple[str, ...]]] = frozen_map(
    {
        "vllm.entrypoints.openai.api_server": ("vllm", ()),
        "vllm.entrypoints.cli.main": ("vllm", ("serve",)),
        "vllm": ("vllm", ("serve",)),
        "sglang.launch_server": ("sglang", ()),
        "sglang.cli.main": ("sglang", ("serve",)),
        "nebula_agent.simulator": ("simulated", ()),
        "nebula_agent": ("simulated", ("simulate-engine",)),
    }
)
#: Where each listens when nobody says: vllm/entrypoints/openai/cli_args.py, sglang/srt/server_args.py, llama.cpp's
#: tools/server/README.md, xllm's global flags, our own simulator.
PORTS: Mapping[str, int] = frozen_map(
    {"vllm": 8000, "sglang": 30000, "llamacpp": 8080, "xllm": 8010, "simulated": 8000}
)
_SOURCES = ("model", "model-path", "hf-repo", "model-tag")
_NAMES = ("served-model-name", "alias", "model-id")
_ADDRESS = frozenset({"host", "port", "uds"})
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
#: Named like secrets and none.
_OPEN = re.compile(r"tokens|tokenizer|token-ids?$|token-budget|keyfile$", re.IGNORECASE)
_KEYS = ("api-key", "api-keys")
_KEY_FILES = ("api-key-file",)
#: llama.cpp's short names, and the few others that have any.
_SHORT: Mapping[str, str] = frozen_map(
    {
        "m": "model",
        "a": "alias",
        "hf": "hf-repo",
        "hfr": "hf-repo",
        "c": "ctx-size",
        "np": "parallel",
        "ngl": "gpu-layers",
        "t": "threads",
        "b": "batch-size",
        "ub": "ubatch-size",
        "fa": "flash-attn",
        "sm": "split-mode",
        "ts": "tensor-split",
        "cb": "cont-batching",
        "ctk": "cache-type-k",
        "ctv": "cache-type-v",
        "tp": "tensor-parallel-size",
        "pp": "pipeline-parallel-size",
        "dp": "data-parallel-size",
        "q": "quantization",
    }
)
_OPTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """An engine as its command line tells it."""

    engine: str
    #: None: it does not say.
    source: str | None
    names: tuple[str, ...]
    host: str | None
    port: int
    args: Mapping[str, ArgValue] = field(default_factory=frozen_map)
    adapters: tuple[Adapter, ...] = ()
    left_out: tuple[str, ...] = ()
    #: The key it wants to see, where its command line has it: never reported, never logged.
    key: str | None = field(default=None, repr=False)
    key_file: str | None = None

    @property
    def called(self) -> tuple[str, ...]:
        """What it calls the model, as far as that can be told without asking it."""
        return self.names or ((self.source,) if self.source is not None else ())


def read_command_line(argv: Sequence[str]) -> CommandLine | None:
    """None: this is no engine."""
    found = _entry(argv)
    if found is None:
        return None
    engine, rest = found
    options, loose = _options(engine, rest)
    return _read(engine, options, loose)


def spec_of(line: CommandLine, *, gpus: int, runtime: str, image: str | None = None) -> DeploymentSpec | None:
    """The deployment that would start the same; None: its command line does not say of what."""
    if line.source is None and line.engine != "simulated":
        return None
    try:
        return DeploymentSpec.model_validate(
            {
                "source": line.source or "sim",
                "engine": line.engine,
                "runtime": runtime,
                "gpus": gpus,
                "args": dict(line.args),
                "adapters": line.adapters,
                "image": image or "auto",
            }
        )
    except ValueError:
        return None


def model_names(listed: Sequence[str], line: CommandLine | None) -> tuple[str, ...]:
    """What it serves, without its adapters: as it says, else as it was told."""
    told = line.called if line is not None else ()
    adapters = {adapter.name for adapter in line.adapters} if line is not None else set()
    return tuple(name for name in listed if name not in adapters)[:16] or told[:16]


# --- parts


def _entry(argv: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The kind of engine, and the words after what named it."""
    if not argv:
        return None
    name = PurePosixPath(argv[0]).name
    if _PYTHON.fullmatch(name) is None:
        return _follows(_PROGRAMS.get(name), argv[1:])
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "-m":
        if argv[at] == "-c":
            return None
        at += 2 if argv[at] in _PYTHON_VALUED else 1
    if at >= len(argv):
        return None
    if argv[at] == "-m":
        return _follows(_MODULES.get(argv[at + 1]), argv[at + 2 :]) if at + 1 < len(argv) else None
    script = PurePosixPath(argv[at])
    return _follows(_PROGRAMS.get(script.name) or _script(script), argv[at + 1 :])


def _script(path: PurePosixPath) -> tuple[str, tuple[str, ...]] | None:
    """A file of a package that is run as a script: `…/vllm/entrypoints/openai/api_server.py`."""
    if path.suffix != ".py":
        return None
    parts = path.with_suffix("").parts
    return next(
        (kind for module, kind in _MODULES.items() if tuple(module.split(".")) == parts[-module.count(".") - 1 :]), None
    )


def _follows(known: tuple[str, tuple[str, ...]] | None, rest: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    if known is None:
        return None
    engine, words = known
    return (engine, rest[len(words) :]) if tuple(rest[: len(words)]) == words else None


def _options(engine: str, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Every option with its words, and the words before the first one."""
    loose: list[str] = []
    found: dict[str, list[str]] = {}
    values = loose
    for word in words:
        if word.startswith("-") and len(word) > 1 and _NUMBER.fullmatch(word) is None:
            name, equals, value = word.lstrip("-").partition("=")
            plain = (
                name.replace("_", "-") if word.startswith("--") or engine == "xllm" else _SHORT.get(name, f"-{name}")
            )
            values = found[plain] = [value] if equals else []
        else:
            values.append(word)
    return found, loose


def _read(engine: str, options: dict[str, list[str]], loose: list[str]) -> CommandLine:
    source = loose[0] if loose else None
    names: tuple[str, ...] = ()
    host = key = key_file = None
    port = PORTS[engine]
    args: dict[str, ArgValue] = {}
    adapters: list[Adapter] = []
    left_out: list[str] = []
    for name, values in options.items():
        first = values[0] if values else None
        if name in _SOURCES and first is not None:
            source = source or first
        elif name in _NAMES:
            names = tuple(part for value in values for part in (value.split(",") if name == "alias" else [value]))
        elif name in _ADDRESS:
            host = first if name == "host" else host
            port = _port(first, port) if name == "port" else port
            left_out += ["uds"] if name == "uds" else []
        elif name in _KEYS:
            key = first
        elif name in _KEY_FILES:
            key_file = first
        elif name == "lora-modules":
            adapters, bad = _adapters(values)
            left_out += bad
        elif (
            name in RESERVED_ARGS
            or _OPTION_NAME.fullmatch(name) is None
            or (_SECRET.search(name) and not _OPEN.search(name))
        ):
            left_out.append(name.lstrip("-")[:80])
        elif len(values) > 1:
            left_out.append(name)
        else:
            args[name] = True if first is None else _value(first)
    return CommandLine(
        engine, source, names, host, port, frozen_map(args), tuple(adapters), tuple(left_out[:32]), key, key_file
    )


def _port(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and 0 < int(text) < 65536 else default


def _value(text: str) -> ArgValue:
    """A number where it is written as one and would be written so again."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and str(float(text)) == text:
        return float(text)
    return text


def _adapters(values: Sequence[str]) -> tuple[list[Adapter], list[str]]:
    found: list[Adapter] = []
    bad: list[str] = []
    for value in values:
        name, _, source = value.partition("=")
        try:
            found.append(Adapter(name=name, source=source))
        except ValueError:
            bad.append("lora-modules")
    return found, bad[:1]
