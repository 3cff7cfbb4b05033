"""Which request heads are let in: one meaning or none (reliability T16, T22; measured M1-M4).

httptools refuses most of what smugglers need (both framings at once, folded and bare-LF lines, bad chunk sizes).
What it lets through is refused here: no Host or two, other transfer codings, trailers, names with underscores
(which some servers take for dashes), request targets that another server may resolve to another path.
"""

import re

from nebula_proxy.decisions.refusal import Refusal, bad_request, encoded_body

Headers = list[tuple[bytes, bytes]]

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
_LOOKS_ODD = re.compile(rb"//|\\|/\.\.?(/|\?|$)|%2[eEfF]|%5[cC]|%00|[\x00-\x20\x7f-\xff#]").search
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


def check_head(method: bytes, target: bytes, version: str, headers: Headers) -> Refusal | None:
    """None for a head with exactly one meaning. Names of `headers` are in lower case."""
    path = target.split(b"?", 1)[0] if b"?" in target else target
    if not path.startswith(b"/"):
        return bad_request("The request target must be a path", hint="send `POST /v1/… HTTP/1.1` with a Host header")
    if _LOOKS_ODD(path) is not None:
        return bad_request("The path is not in its plain form", hint="no `//`, `..`, backslash or encoded slash")
    if version not in {"1.1", "1.0"}:
        return bad_request(f"HTTP/{version} is not spoken here", hint="use HTTP/1.1")
    seen: set[bytes] = set()
    for name, value in headers:
        if b"_" in name:
            return bad_request("A header name holds an underscore", hint="write it with a dash")
        if _CONTROL(value) is not None:
            return bad_request("A header value holds a control character", hint="remove it")
        if name in _SINGLE:
            if name in seen:
                return bad_request(f"There are two {name.decode()} headers", hint="send one")
            seen.add(name)
            refusal = _check_value(name, value, version)
            if refusal is not None:
                return refusal
        elif name == b"trailer":
            return bad_request("Trailers are not accepted", hint="send everything in the head")
        elif name == b"upgrade" and method not in {b"GET", b"HEAD"}:
            return bad_request("Upgrade is not possible here", hint="leave the Upgrade header out")
    if b"host" not in seen and version == "1.1":
        return bad_request("There is no Host header", hint="HTTP/1.1 asks for one")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        return bad_request("Content-Length and Transfer-Encoding exclude each other", hint="send one of them")
    return None


def _check_value(name: bytes, value: bytes, version: str) -> Refusal | None:
    if name == b"host":
        if _HOST(value) is None:
            return bad_request("The Host header is not a host", hint="send `Host: name` or `Host: name:port`")
    elif name == b"content-length":
        if not value.isdigit():
            return bad_request("Content-Length is not a number", hint="send the body's length in bytes")
    elif name == b"transfer-encoding":
        if value.lower() != b"chunked" or version != "1.1":
            return bad_request("Only `Transfer-Encoding: chunked` of HTTP/1.1 is accepted", hint="send Content-Length")
    elif name == b"content-encoding":
        if value.lower() != b"identity":
            return encoded_body(value[:32].decode("latin-1"))
    elif name == b"expect" and value.lower() != b"100-continue":
        return bad_request("Only `Expect: 100-continue` is known", hint="leave the Expect header out")
    return None
