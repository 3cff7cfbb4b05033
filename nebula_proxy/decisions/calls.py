"""The inference calls that are forwarded: an exact list, so that nothing else of an engine can be reached through us."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from nebula_core.wire.openai import Dialect


class Call(NamedTuple):
    path: bytes
    dialect: Dialect = Dialect.CHAT


_ALL = (
    Call(b"/v1/chat/completions"),
    Call(b"/v1/completions"),
    Call(b"/v1/responses", Dialect.RESPONSES),
    Call(b"/v1/embeddings"),
    Call(b"/v1/rerank"),
    Call(b"/v1/score"),
    Call(b"/v1/messages", Dialect.MESSAGES),
    Call(b"/tokenize"),
    Call(b"/detokenize"),
)

#: By the path as it stands in the request line.
CALLS: Mapping[bytes, Call] = MappingProxyType({call.path: call for call in _ALL})
