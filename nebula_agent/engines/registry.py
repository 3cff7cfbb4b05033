"""The kinds of engines there are, by name. `external` is not started by anybody and joins with its runtime."""

from collections.abc import Mapping
from types import MappingProxyType

from nebula_agent.engines.base import Engine
from nebula_agent.engines.llamacpp import LlamaCpp
from nebula_agent.engines.sglang import Sglang
from nebula_agent.engines.simulated import Simulated
from nebula_agent.engines.vllm import Vllm

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {engine.kind: engine for engine in (Vllm(), Sglang(), LlamaCpp(), Simulated())}
)
