"""The inference calls that are forwarded: an exact list, so that nothing else of an engine can be reached through us."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nebula_core.wire.openai import Dialect


@dataclass(frozen=True, slots=True)
class Call:
    """`path` is asked of the engine; `asked` is what the client asked, where that is another."""

    path: bytes
    dialect: Dialect = Dialect.CHAT
    asked: bytes = b""
    #: Tokens are made for it.
    generates: bool = False
    #: An answer to it shows that the engine computes; else the server before the engine gives it by itself.
    computes: bool = True
    #: The client's path, for the log.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", (self.asked or self.path).decode("ascii"))


_ALL = (
    Call(b"/v1/chat/completions", generates=True),
    Call(b"/v1/completions", generates=True),
    Call(b"/v1/responses", Dialect.RESPONSES, generates=True),
    Call(b"/v1/embeddings"),
    Call(b"/v1/rerank"),
    Call(b"/v1/score"),
    Call(b"/v1/messages", Dialect.MESSAGES, generates=True),
    Call(b"/v1/messages/count_tokens", Dialect.MESSAGES, computes=False),
    Call(b"/tokenize", computes=False),
    Call(b"/detokenize", computes=False),
)

#: By the path as it stands in the request line.
CALLS: Mapping[bytes, Call] = MappingProxyType({call.path: call for call in _ALL})

#: A Responses request to an engine that speaks chat alone: translated both ways (`traffic/translation`).
RESPONSES_AS_CHAT = Call(b"/v1/chat/completions", Dialect.CHAT, asked=b"/v1/responses", generates=True)

#: Engines whose own Responses API is not used. llama.cpp's streams carry no `sequence_number`, `output_index` or
#: `content_index`, and say "completed" where the answer was cut off (captured), so OpenAI's clients cannot follow them.
_TRANSLATED = frozenset({"llamacpp"})


def speaks_responses(engine: str) -> bool:
    """Whether an engine of this kind is asked in the Responses API until it says that it has none (`lacks_the_path`)."""
    return engine not in _TRANSLATED
