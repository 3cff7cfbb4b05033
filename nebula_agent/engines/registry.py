"""The kinds of engines there are, by name. `external` is of the kind that its address turns out to be."""

from collections.abc import Mapping
from types import MappingProxyType

from nebula_agent.engines.base import Engine
from nebula_agent.engines.external import Other
from nebula_agent.engines.llamacpp import LlamaCpp
from nebula_agent.engines.sglang import Sglang
from nebula_agent.engines.simulated import Simulated
from nebula_agent.engines.vllm import Vllm
from nebula_agent.engines.xllm import Xllm

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {engine.kind: engine for engine in (Vllm(), Sglang(), LlamaCpp(), Xllm(), Simulated())}
)
_OTHER = Other()


def engine_of(kind: str, detected: str | None) -> Engine:
    """The engine a start is watched as: of the spec's kind, or what an external one was found to be."""
    return ENGINES.get(kind) or ENGINES.get(detected or "", _OTHER)
