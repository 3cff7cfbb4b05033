"""Which request heads are let in: one meaning or none (reliability T16, T22; measured M1-M4).

httptools refuses most of what smugglers need (both framings at once, folded and bare-LF lines, bad chunk sizes).
What it lets through is refused here: no Host or two, other transfer codings, trailers, names with underscores
(which some servers take for dashes), request targets that another server may resolve to another path.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.decisions.refusal import Refusal, bad_request, encoded_body, head_too_large

Header = tuple[bytes, bytes]

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024

#: Headers of which a second one would make the request mean two things.
_SINGLE = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"expect",
        b"x-api-key",
        b"x-nebula-replica",
    }
)
_HOST = re.compile(rb"[A-Za-z0-9._\-]*(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?").fullmatch
_LOOKS_ODD = re.compile(rb"//|\\|/\.\.?([/?;]|$)|%2[eEfF]|%5[cC]|%00|[\x00-\x20\x7f-\xff#]").search
#: Headers that need a look at their value, or whose mere presence is refused.
_TELLING = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"trailer", b"upgrade"})


def check_head(
    method: bytes, target: bytes, version: str, headers: Sequence[Header], by_name: Mapping[bytes, bytes]
) -> Refusal | None:
    """None for a head with exactly one meaning. `headers` have names in lower case, `by_name` is the dict of them.

    Control characters never come this far: httptools refuses them. A client sends the same names again and again, so
    what depends on the names alone is remembered (`_is_plain`).
    """
    if target not in CALLS and (refusal := _check_target(target)) is not None:
        return refusal
    if version == "1.1" and len(by_name) == len(headers) and _is_plain(tuple(by_name)):
        if not _is_host(by_name[b"host"]):
            return bad_request("The Host header is not a host", hint="send `Host: name` or `Host: name:port`")
        length = by_name.get(b"content-length")
        if length is not None and not length.isdigit():
            return bad_request("Content-Length is not a number", hint="send the body's length in bytes")
        return None
    return _check_closely(method, version, headers, by_name)


@lru_cache(maxsize=4096)
def _is_plain(names: tuple[bytes, ...]) -> bool:
    """Nothing to be said about a head with these names, but for the values of Host and Content-Length."""
    return b"host" in names and len(names) <= MAX_HEADERS and b"_" not in b"".join(names) and _TELLING.isdisjoint(names)


@lru_cache(maxsize=4096)
def _is_host(value: bytes) -> bool:
    return _HOST(value) is not None


def _check_closely(
    method: bytes, version: str, headers: Sequence[Header], by_name: Mapping[bytes, bytes]
) -> Refusal | None:
    if version not in {"1.1", "1.0"}:
        return bad_request(f"HTTP/{version} is not spoken here", hint="use HTTP/1.1")
    if len(headers) > MAX_HEADERS:
        return head_too_large(f"more than {MAX_HEADERS} headers")
    if (refusal := _check_double(headers)) is not None:
        return refusal
    if b"_" in b"".join(by_name):
        return bad_request("A header name holds an underscore", hint="write it with a dash")
    host = by_name.get(b"host")
    if host is None:
        if version == "1.1":
            return bad_request("There is no Host header", hint="HTTP/1.1 asks for one")
    elif not _is_host(host):
        return bad_request("The Host header is not a host", hint="send `Host: name` or `Host: name:port`")
    length = by_name.get(b"content-length")
    coding = by_name.get(b"transfer-encoding")
    if length is not None:
        if not length.isdigit():
            return bad_request("Content-Length is not a number", hint="send the body's length in bytes")
        if coding is not None:
            return bad_request("Content-Length and Transfer-Encoding exclude each other", hint="send one of them")
    elif coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
        return bad_request("Only `Transfer-Encoding: chunked` of HTTP/1.1 is accepted", hint="send Content-Length")
    return _check_rare(method, by_name)


def check_cold(method: bytes) -> Refusal | None:
    """What is asked besides of a head that is no inference call."""
    if method == b"CONNECT":
        # The parser takes what follows for a tunnel.
        return bad_request("There are no tunnels here", hint="send the request itself")
    return None


def _check_target(target: bytes) -> Refusal | None:
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        return bad_request("The request target must be a path", hint="send a path and a Host header")
    if _LOOKS_ODD(path) is not None:
        return bad_request("The path is not in its plain form", hint="no `//`, `..`, backslash or encoded slash")
    return None


def _check_double(headers: Sequence[Header]) -> Refusal | None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _SINGLE:
            return bad_request(f"There are two {name.decode('ascii')} headers", hint="send one")
        seen.add(name)
    return None


def _check_rare(method: bytes, by_name: Mapping[bytes, bytes]) -> Refusal | None:
    encoding = by_name.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        return encoded_body(encoding[:32].decode("latin-1"))
    expect = by_name.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        return bad_request("Only `Expect: 100-continue` is known", hint="leave the Expect header out")
    if b"trailer" in by_name:
        return bad_request("Trailers are not accepted", hint="send everything in the head")
    if b"upgrade" in by_name and method not in {b"GET", b"HEAD"}:
        return bad_request("Upgrade is not possible here", hint="leave the Upgrade header out")
    return None


def too_many_bytes(headers: Sequence[Header], target: bytes) -> Refusal | None:
    """Whether a complete head is too long."""
    if len(target) + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        return head_too_large(f"more than {MAX_HEAD_BYTES} bytes")
    return None
