"""Requests that could mean two things, as data: what is sent, what a client must read, what an engine may see.

Every case is followed on the same connection by one sound request (`TAIL`). Where the connection goes on, the tail is
answered; where it ends, nothing of the tail may be seen by anybody. Sources: RFC 9112, the findings M2-M4 of the
reliability reference, the payload families of public request-smuggling suites (CL.TE, TE.CL, TE.TE, CL.0, H2C, chunk
extensions, trailers), and what nginx, haproxy, llhttp and h11 are known to read differently.
"""

from typing import NamedTuple

TOKEN = b"{TOKEN}"
PATH = b"/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"case"}]}'
TAIL_BODY = b'{"model":"m","messages":[{"role":"user","content":"tail"}]}'
ONE, TWO = BODY.replace(b"case", b"one"), BODY.replace(b"case", b"two")
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


class Case(NamedTuple):
    name: str
    data: bytes
    #: Final statuses in order, without those of the tail.
    statuses: tuple[int, ...]
    #: Bodies that reach the engine, in order.
    bodies: tuple[bytes, ...] = ()
    #: The connection goes on: the tail is served.
    goes_on: bool = False
    #: The case leaves a request incomplete: it gets no answer before its deadline, and the tail is part of it.
    waits: bool = False


def request(
    *lines: bytes, body: bytes = BODY, line: bytes = b"POST " + PATH + b" HTTP/1.1", add: bool = True, host: bool = True
) -> bytes:
    """A request from its lines; with `add` those that are not given are sound."""
    head = [line]
    if add:
        names = [each.lower() for each in lines]
        if host and not any(name.startswith(b"host:") for name in names):
            head.append(b"Host: nebula")
        if not any(name.startswith(b"authorization") for name in names):
            head.append(b"Authorization: Bearer " + TOKEN)
        head.append(b"Content-Type: application/json")
        if not any(name.startswith((b"content-length", b"transfer-encoding")) for name in names):
            head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, *lines, b"", b""]) + body


TAIL = request(b"Connection: close", b"X-Request-Id: tail", body=TAIL_BODY)


def refused(name: str, data: bytes, status: int = 400) -> Case:
    return Case(name, data, (status,))


def served(name: str, data: bytes, *bodies: bytes, goes_on: bool = True) -> Case:
    bodies = bodies or (BODY,)
    return Case(name, data, (200,) * len(bodies), bodies, goes_on)


def answered(name: str, data: bytes, *statuses: int) -> Case:
    """Answers of our own, after which the connection goes on."""
    return Case(name, data, statuses, (), goes_on=True)


def _lengths_and_codings() -> list[Case]:
    cases = [
        refused("CL then TE", request(LENGTH, CHUNKED, body=IN_CHUNKS)),
        refused("TE then CL", request(CHUNKED, LENGTH, body=IN_CHUNKS)),
        refused("CL 0 then TE", request(b"Content-Length: 0", CHUNKED, body=IN_CHUNKS)),
        refused("TE then CL 0", request(CHUNKED, b"Content-Length: 0", body=IN_CHUNKS)),
        refused("CL.TE with a smuggled request", request(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG")),
        refused("TE.CL with a smuggled request", request(CHUNKED, b"Content-Length: 4", body=b"5c\r\nGPOST / HTTP/1.1\r\n\r\n")),
        refused("CL and TE of 1.0", request(LENGTH, CHUNKED, line=b"POST " + PATH + b" HTTP/1.0", body=IN_CHUNKS)),
        refused("TE of 1.0", request(CHUNKED, line=b"POST " + PATH + b" HTTP/1.0", body=IN_CHUNKS)),
        refused("CL and TE identity", request(LENGTH, b"Transfer-Encoding: identity")),
        refused("CL and TE gzip", request(LENGTH, b"Transfer-Encoding: gzip")),
        refused("CL and TE in capitals", request(LENGTH, b"TRANSFER-ENCODING: CHUNKED", body=IN_CHUNKS)),
        refused("CL, TE, CL", request(LENGTH, CHUNKED, LENGTH, body=IN_CHUNKS)),
    ]  # fmt: skip
    for value in (
        b"5, 5", b"5,6", b"+5", b"-1", b"-0", b"0x5", b"5e0", b"5.0", b"", b" ", b"5 5", b"5;", b"'5'", b'"5"',
        b"\xd9\xa5", b"1_0", b"\x0b5", b"5\x0b", b"5\x00", b"five", b"18446744073709551616", b"99999999999999999999999",
        b"0005 6", b"5\xa0", b"NaN", b"0b101", b"5,", b",5",
    ):  # fmt: skip
        cases.append(refused(f"a length of {value!r}", request(b"Content-Length: " + value)))
    for first, second in ((LENGTH, LENGTH), (LENGTH, b"Content-Length: 5"), (b"Content-Length: 0", LENGTH)):
        cases.append(refused(f"two lengths {first!r} {second!r}", request(first, second)))
    cases += [
        refused("three equal lengths", request(LENGTH, LENGTH, LENGTH)),
        refused("a length in capitals beside one", request(LENGTH, LENGTH.upper())),
        refused("a length with a space before its colon", request(b"Content-Length : %d" % len(BODY))),
        refused("a length with a tab before its colon", request(b"Content-Length\t: %d" % len(BODY))),
        refused("a length with an underscore", request(LENGTH, b"Content_Length: 0")),
        refused("a length with a NUL in its name", request(LENGTH, b"Content-Length\x00: 0")),
        refused("a length beyond the limit", request(b"Content-Length: 9000000000"), 413),
        refused("a length of 2^63", request(b"Content-Length: 9223372036854775808"), 413),
        served("a length with zeros before", request(b"Content-Length: 000%d" % len(BODY))),
        refused("a length with a tab after", request(b"Content-Length: %d\t" % len(BODY))),
        refused("a length with spaces around", request(b"Content-Length:   %d   " % len(BODY))),
        served("a length without a space", request(b"Content-Length:%d" % len(BODY))),
        served("a length with a tab before", request(b"Content-Length:\t%d" % len(BODY))),
        served("a length in capitals", request(LENGTH.upper())),
        Case("a length longer than the body", request(b"Content-Length: 5000"), (), waits=True),
        Case("a length shorter than the body", request(b"Content-Length: 4", body=BODY), (400, 400)),
        answered("a length of 0", request(b"Content-Length: 0", body=b""), 400),
    ]
    return cases


def _codings() -> list[Case]:
    cases = []
    for value in (
        b"xchunked", b"chunkedx", b"chunked,", b",chunked", b"chunked, chunked", b"chunked, identity",
        b"identity, chunked", b"gzip, chunked", b"chunked;q=1", b"chunked; ext", b'"chunked"', b"'chunked'",
        b"chun\x00ked", b"\x0bchunked", b"\x0cchunked", b"chunked\x0b", b"chunked\x00", b"chu nked", b"chunked chunked",
        b"trailers, chunked", b"", b"compress", b"deflate", b"br", b"zstd", b"identity", b"gzip", b"\xe2\x84\xaahunked",
        b"chunked\x85", b"chunked\xa0", b"[chunked]", b"chunked, gzip", b"cow", b"chunked\tx", b"x\tchunked", b"0",
    ):  # fmt: skip
        cases.append(refused(f"a coding of {value!r}", request(b"Transfer-Encoding: " + value, body=IN_CHUNKS)))
    for lines in (
        (CHUNKED, CHUNKED),
        (CHUNKED, b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: identity", CHUNKED),
        (CHUNKED, b"Transfer-Encoding: x"),
        (b"Transfer-Encoding: ", CHUNKED),
        (b"Transfer-Encoding:\r\n chunked",),
        (b"Transfer-Encoding: chunked\r\n ",),
        (b"Transfer-Encoding: x\r\n chunked",),
        (b"Transfer-Encoding : chunked",),
        (b"Transfer-Encoding\t: chunked",),
        (b"Transfer-Encoding\x00: chunked",),
        (b"Transfer-Encoding\x0b: chunked",),
        (b"X: x\nTransfer-Encoding: chunked",),
        (b"X: x\rTransfer-Encoding: chunked",),
        (b"X: x\n\rTransfer-Encoding: chunked",),
        (b"X: x\r\r\nTransfer-Encoding: chunked",),
        (b"Transfer_Encoding: chunked",),
        (b"Transfer Encoding: chunked",),
        (b"Transfer-Encoding",),
        (b"Transfer-Encoding chunked",),
        (b"\x00Transfer-Encoding: chunked",),
        (b"\tTransfer-Encoding: chunked",),
        (b" Transfer-Encoding: chunked",),
        (b"Transfer-\xc4\x96ncoding: chunked",),
        (b"Transfer\xe2\x80\x90Encoding: chunked",),
    ):
        cases.append(refused(f"codings {b' | '.join(lines)!r}", request(*lines, body=IN_CHUNKS)))
    cases += [
        served("chunks", request(CHUNKED, body=IN_CHUNKS)),
        served("a coding in capitals", request(b"Transfer-Encoding: CHUNKED", body=IN_CHUNKS)),
        served("a coding in mixed case", request(b"tRANSFER-eNCODING: cHuNkEd", body=IN_CHUNKS)),
        served("a coding without a space", request(b"Transfer-Encoding:chunked", body=IN_CHUNKS)),
        served("a coding with a tab", request(b"Transfer-Encoding:\tchunked", body=IN_CHUNKS)),
        refused("a coding with a space after", request(b"Transfer-Encoding: chunked ", body=IN_CHUNKS)),
        served("TE is no coding", request(LENGTH, b"TE: chunked")),
        served("TE trailers", request(LENGTH, b"TE: trailers", b"Connection: TE")),
        served("a coding of another name", request(LENGTH, b"X-Transfer-Encoding: chunked")),
    ]
    return cases


def _chunks() -> list[Case]:
    size = b"%x" % len(BODY)
    rest = b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    cases = []
    for bad in (
        b"g", b"0x5", b"+5", b"-5", b" 5", b"5 5", b"", b"FFFFFFFFFFFFFFFFF", b"10000000000000000", b"5\x00", b"\x0b5",
        b"5\xa0", b"5,", b"'5'", b"zz", b"5\t6", b"1e", b"\xef\xbc\x95",
    ):  # fmt: skip
        cases.append(refused(f"a chunk size of {bad!r}", request(CHUNKED, body=bad + rest)))
    cases += [
        refused("a chunk size ended by LF", request(CHUNKED, body=size + b"\n" + BODY + b"\r\n0\r\n\r\n")),
        refused("a chunk size ended by CR", request(CHUNKED, body=size + b"\r" + BODY + b"\r\n0\r\n\r\n")),
        refused("a chunk ended by LF", request(CHUNKED, body=size + b"\r\n" + BODY + b"\n0\r\n\r\n")),
        refused("a chunk ended by nothing", request(CHUNKED, body=size + b"\r\n" + BODY + b"0\r\n\r\n")),
        refused("a chunk longer than said", request(CHUNKED, body=b"3" + rest)),
        refused("a chunk shorter than said", request(CHUNKED, body=b"%x" % (len(BODY) + 3) + rest)),
        refused("a last chunk ended by LF", request(CHUNKED, body=size + b"\r\n" + BODY + b"\r\n0\n\n")),
        refused("a last chunk ended by CR", request(CHUNKED, body=size + b"\r\n" + BODY + b"\r\n0\r\r\n")),
        refused("an extension with LF", request(CHUNKED, body=size + b";a\n" + BODY + b"\r\n0\r\n\r\n")),
        refused("an extension with a lone CR", request(CHUNKED, body=size + b";a\rb" + rest)),
        refused("an extension with a NUL", request(CHUNKED, body=size + b";a\x00" + rest)),
        refused("a space before an extension's LF", request(CHUNKED, body=size + b" \n" + BODY + b"\r\n0\r\n\r\n")),
        refused("a trailer", request(CHUNKED, body=IN_CHUNKS[:-2] + b"X-Role: admin\r\n\r\n")),
        refused("a trailer that is a key", request(CHUNKED, body=IN_CHUNKS[:-2] + b"Authorization: Bearer x\r\n\r\n")),
        refused("a trailer that is a length", request(CHUNKED, body=IN_CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n")),
        refused("a trailer that is a coding", request(CHUNKED, body=IN_CHUNKS[:-2] + b"Transfer-Encoding: x\r\n\r\n")),
        refused("a trailer with LF", request(CHUNKED, body=IN_CHUNKS[:-2] + b"X: 1\n\n")),
        refused("a trailer without a colon", request(CHUNKED, body=IN_CHUNKS[:-2] + b"GET / HTTP/1.1\r\n\r\n")),
        refused("a trailer announced", request(CHUNKED, b"Trailer: X-Role", body=IN_CHUNKS)),
        refused("a trailer announced with a length", request(LENGTH, b"Trailer: X-Role")),
        refused("an empty trailer announced", request(CHUNKED, b"Trailer:", body=IN_CHUNKS)),
        served("a size in capitals", request(CHUNKED, body=size.upper() + rest)),
        served("a size with zeros before", request(CHUNKED, body=b"000" + size + rest)),
        served("a last size of many zeros", request(CHUNKED, body=size + b"\r\n" + BODY + b"\r\n00000\r\n\r\n")),
        served("an extension", request(CHUNKED, body=size + b";a" + rest)),
        served("an extension with a value", request(CHUNKED, body=size + b";a=b" + rest)),
        served("an extension with a quoted value", request(CHUNKED, body=size + b';a="b c"' + rest)),
        served("an extension of the last chunk", request(CHUNKED, body=size + b"\r\n" + BODY + b"\r\n0;a=b\r\n\r\n")),
        served(
            "chunks of one byte",
            request(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
        ),
        Case("no last chunk", request(CHUNKED, body=size + b"\r\n" + BODY + b"\r\n"), (400,)),
        Case("a last chunk without its end", request(CHUNKED, body=IN_CHUNKS[:-2]), (400,)),
        answered("no chunk but the last", request(CHUNKED, body=b"0\r\n\r\n"), 400),
    ]
    return cases


def _headers() -> list[Case]:
    cases = []
    for byte in [*range(0x20), 0x7F]:
        if byte in {0x09, 0x0A, 0x0D}:
            continue
        cases.append(refused(f"byte {byte:#04x} in a value", request(LENGTH, b"X-A: a%cb" % byte)))
    for byte in b'\x00\x01\x0b\x0c\x1b "(),/:;<=>?@[\\]{}\x7f\x80\xff':
        if byte == 0x3A:
            continue
        cases.append(refused(f"byte {byte:#04x} in a name", request(LENGTH, b"X%cA: 1" % byte)))
    for name in (b"X_A", b"_", b"a_", b"_a", b"x_nebula_replica", b"authorization_", b"X_Forwarded_For", b"a_b_c"):
        cases.append(refused(f"the name {name!r}", request(LENGTH, name + b": 1")))
    cases += [
        refused("a folded line", request(LENGTH, b"X-A: 1\r\n 2")),
        refused("a line folded by a tab", request(LENGTH, b"X-A: 1\r\n\t2")),
        refused("a line folded to nothing", request(LENGTH, b"X-A: 1\r\n ")),
        refused("a first line folded", request(b" X-A: 1", LENGTH, add=False)),
        refused("a folded host", request(LENGTH, b"Host:\r\n nebula")),
        refused("a folded key", request(LENGTH, b"Authorization: Bearer\r\n " + TOKEN)),
        refused("an LF in a value", request(LENGTH, b"X-A: 1\nX-B: 2")),
        refused("a CR in a value", request(LENGTH, b"X-A: 1\rX-B: 2")),
        refused("CR CR LF", request(LENGTH, b"X-A: 1\r")),
        refused("LF CR", request(LENGTH, b"X-A: 1\n\rX-B: 2")),
        refused("an LF ends the head", request(LENGTH, b"X-A: 1\n\n")),
        refused("no name", request(LENGTH, b": 1")),
        refused("no colon", request(LENGTH, b"X-A")),
        refused("a space before the colon", request(LENGTH, b"X-A : 1")),
        refused("a space in a name", request(LENGTH, b"X A: 1")),
        refused("only spaces", request(LENGTH, b"   ")),
        refused("a name in UTF-8", request(LENGTH, "Grüße: 1".encode())),
        served("a value in UTF-8", request(LENGTH, "X-A: Grüße".encode())),
        served("a value in Latin-1", request(LENGTH, b"X-A: Gr\xfc\xdfe")),
        served("an empty value", request(LENGTH, b"X-A:")),
        served("a value of spaces", request(LENGTH, b"X-A:    ")),
        served("a value with a tab", request(LENGTH, b"X-A: a\tb")),
        served("a value with colons", request(LENGTH, b"X-A: a:b:c")),
        served("a name of every token character", request(LENGTH, b"!#$%&'*+-.^`|~09azAZ: 1")),
        served("the same name twice", request(LENGTH, b"X-A: 1", b"X-A: 2")),
        served("cookies twice", request(LENGTH, b"Cookie: a=b", b"Cookie: c=d")),
        served("a hundred headers", request(LENGTH, *(b"X-%d: 1" % number for number in range(96)))),
        refused("too many headers", request(LENGTH, *(b"X-%d: 1" % number for number in range(97))), 431),
        refused("far too many headers", request(LENGTH, *(b"X-%d: 1" % number for number in range(5000))), 431),
        served("a long header", request(LENGTH, b"X-A: " + b"x" * 30_000)),
        refused("too long a header", request(LENGTH, b"X-A: " + b"x" * 33_000), 431),
        refused("too long a name", request(LENGTH, b"X" * 33_000 + b": 1"), 431),
        refused("too long a target", request(LENGTH, line=b"POST /" + b"x" * 33_000 + b" HTTP/1.1"), 431),
        refused("too long a query", request(LENGTH, line=b"POST " + PATH + b"?" + b"x" * 33_000 + b" HTTP/1.1"), 431),
    ]
    for name, value in (
        (b"Authorization", b"Bearer x"), (b"Content-Type", b"text/plain"), (b"X-Api-Key", b"a"),
        (b"X-Nebula-Replica", b"m-r0"), (b"Content-Encoding", b"identity"), (b"Expect", b"100-continue"),
    ):  # fmt: skip
        lines = [name + b": " + value] * 2
        cases.append(refused(f"two {name.decode()}", request(LENGTH, *lines)))
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, identity", b"x", b"identity, gzip", b""):
        cases.append(refused(f"a body encoded as {coding!r}", request(LENGTH, b"Content-Encoding: " + coding), 415))
    cases.append(served("a body encoded as identity", request(LENGTH, b"Content-Encoding: identity")))
    return cases


def _hosts() -> list[Case]:
    cases = [
        refused("no host", request(LENGTH, host=False)),
        refused("two hosts", request(LENGTH, b"Host: a", b"Host: b")),
        refused("two equal hosts", request(LENGTH, b"Host: a", b"Host: a")),
        refused("a host with a space before its colon", request(LENGTH, b"Host : a", host=False)),
        served("no host of 1.0", request(LENGTH, line=b"POST " + PATH + b" HTTP/1.0", host=False), goes_on=False),
        served("an empty host", request(LENGTH, b"Host:")),
    ]
    for host in (
        b"a/?x=", b"a?b", b"a b", b"user@a", b"a:b", b"a:123456", b"a,b", b"a:80,b", b"\xff", b"[x]", b"[::1", b"a#b",
        b"//a", b"a\\b", b"http://a", b"a:", b"a;b", b"a'b", b'"a"', b"a%00", b"%61", b"a:80:80",
    ):  # fmt: skip
        cases.append(refused(f"the host {host!r}", request(LENGTH, b"Host: " + host)))
    for host in (b"a.b-c.example:65535", b"127.0.0.1:8081", b"[::1]:8081", b"[2001:db8::1]", b"A.EXAMPLE"):
        cases.append(served(f"the host {host!r}", request(LENGTH, b"Host: " + host)))
    return cases


def _lines() -> list[Case]:
    def line(raw: bytes) -> bytes:
        return request(LENGTH, line=raw)

    cases = []
    for version in (
        b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/2", b"HTTP/9.9", b"HTTP/1.1x", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1.", b"HTTP/1",
        b"HTTP/ 1.1", b"http/1.1", b"HTTP/1.1 x", b"HTTPS/1.1", b"ICE/1.0", b"HTTP/-1.1", b"HTTP/1,1", b"XHTTP/1.1",
    ):  # fmt: skip
        cases.append(refused(f"the version {version!r}", line(b"POST " + PATH + b" " + version)))
    for method in (
        b"post", b"Post", b"POST\x00", b"PO(ST", b"GPOST", b"FOO", b"P OST", b"", b"POST\t", b"\x00POST", b"PO\nST", b"POST\x0b", b"CONNECT", b"PRI",
        b"SSTP_DUPLEX_POST", b"POSTX", b"\xffPOST",
    ):  # fmt: skip
        cases.append(refused(f"the method {method!r}", line(method + b" " + PATH + b" HTTP/1.1")))
    for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND"):
        cases.append(answered(f"the method {method!r}", line(method + b" " + PATH + b" HTTP/1.1"), 405))
    for raw in (
        b"POST\t" + PATH + b"\tHTTP/1.1",
        b"POST " + PATH + b"\tHTTP/1.1", b"POST " + PATH + b" HTTP/1.1 ", b" POST " + PATH + b" HTTP/1.1",
        b"POST", b"POST ", b"POST " + PATH, b"POST HTTP/1.1", b"POST " + PATH + b" x HTTP/1.1", b"POST " + PATH + b" HTTP/1.1\rX: 1",
        b"POST " + PATH + b" HTTP/1.1\nX: 1", b"POST " + PATH + b"\x00 HTTP/1.1", b"POST\xa0" + PATH + b" HTTP/1.1",
    ):  # fmt: skip
        cases.append(refused(f"the line {raw!r}", line(raw)))
    for junk in (
        b"\x00", b" ", b"\xef\xbb\xbf", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n",
        b"HELO x\r\n", b"\x04\x01\x1f\x91\x7f\x00\x00\x01\x00", b"\x05\x01\x00", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\n", b"X: 1\r\n", b"\t",
    ):  # fmt: skip
        cases.append(refused(f"junk before: {junk!r}", junk + request(LENGTH)))
    cases += [
        served("an empty line before", b"\r\n" + request(LENGTH)),
        served("empty lines before", b"\r\n\r\n\r\n" + request(LENGTH)),
        # The parser is lenient here, and nothing hangs on it: what goes to the engine is written anew.
        served("two spaces before the target", line(b"POST  " + PATH + b" HTTP/1.1")),
        served("two spaces behind the target", line(b"POST " + PATH + b"  HTTP/1.1")),
        served("an empty line with two CRs before", b"\r\r\n" + request(LENGTH)),
        served("RTSP/1.0, taken for HTTP/1.0", line(b"POST " + PATH + b" RTSP/1.0"), goes_on=False),
        served("HTTP/1.0", request(LENGTH, line=b"POST " + PATH + b" HTTP/1.0"), goes_on=False),
    ]
    return cases


def _targets() -> list[Case]:
    cases = []
    for target in (
        b"http://nebula/v1/chat/completions", b"https://nebula/v1/chat/completions", b"HTTP://nebula/v1/chat/completions",
        b"http://x@nebula/v1/chat/completions", b"//v1/chat/completions", b"//nebula/v1/chat/completions",
        b"/v1//chat/completions", b"/v1/chat/completions//", b"/v1/../v1/chat/completions", b"/../v1/chat/completions",
        b"/v1/./chat/completions", b"/./v1/chat/completions", b"/v1/chat/completions/..", b"/v1/chat/completions/.",
        b"/v1/chat/completions/../../sleep", b"/v1/%2e%2e/v1/chat/completions", b"/v1/%2E%2E/sleep", b"/v1/.%2e/sleep",
        b"/v1/%2e/chat/completions", b"/v1%2fchat%2fcompletions", b"/v1%2Fchat/completions", b"/v1%5cchat/completions",
        b"/v1%5Cchat/completions", b"/v1\\chat/completions", b"\\v1\\chat\\completions", b"/v1/chat/completions%00",
        b"*", b"nebula:443", b"nebula/v1/chat/completions", b"/v1/chat/completions#x", b"@evil/v1/chat/completions",
        b"?/v1/chat/completions", b"/v1/chat/completions\xc0\xaf", b"/v1/chat\xc0\xaecompletions", b"/v1/chat/completions%2f..%2fsleep",
        b"/v1/chat/completions\x7f", b"/\xff", b"v1/chat/completions", b";/v1/chat/completions", b"/v1/chat/..;/sleep",
    ):  # fmt: skip
        cases.append(refused(f"the target {target!r}", request(LENGTH, line=b"POST " + target + b" HTTP/1.1")))
    for target in (
        b"/", b"/v1", b"/v1/", b"/v1/chat", b"/v1/chat/completions/", b"/V1/CHAT/COMPLETIONS", b"/v1/Chat/completions",
        b"/v1/chat/completions;x=1", b"/v1;/chat/completions", b"/v1/chat/completions%20", b"/v1/chat/completions%0d%0a",
        b"/v1/%63hat/completions", b"/v1/chat/completions%3fx", b"/sleep", b"/SLEEP", b"/sleep?x=/v1/chat/completions",
        b"/v1/chat/completions.", b"/v1/chat/completions&x", b"/v1/chat/completions,x", b"/v1/chat/%63ompletions",
    ):  # fmt: skip
        cases.append(answered(f"the target {target!r}", request(LENGTH, line=b"POST " + target + b" HTTP/1.1"), 404))
    for query in (b"?", b"?a=b", b"?/../sleep", b"?a=//%2f", b"?%00", b"??", b"?a=b;c=d", b"?http://x/"):
        cases.append(served(f"the query {query!r}", request(LENGTH, line=b"POST " + PATH + query + b" HTTP/1.1")))
    return cases


def _hops() -> list[Case]:
    cases = [
        refused("an upgrade to websocket", request(LENGTH, b"Connection: upgrade", b"Upgrade: websocket")),
        refused(
            "an upgrade to h2c",
            request(LENGTH, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        ),
        refused("an upgrade without a connection", request(LENGTH, b"Upgrade: x")),
        refused("an upgrade with chunks", request(CHUNKED, b"Connection: upgrade", b"Upgrade: h2c", body=IN_CHUNKS)),
        served("a connection that names the key", request(LENGTH, b"Connection: authorization")),
        served("a connection that names the length", request(LENGTH, b"Connection: content-length, keep-alive")),
        served("a connection that names the host", request(LENGTH, b"Connection: host")),
        served("keep-alive", request(LENGTH, b"Connection: keep-alive", b"Keep-Alive: timeout=5")),
        served("a proxy's connection", request(LENGTH, b"Proxy-Connection: close"), goes_on=False),
        served("close", request(LENGTH, b"Connection: close"), goes_on=False),
        served("close in capitals", request(LENGTH, b"Connection: CLOSE"), goes_on=False),
        served("close and keep-alive", request(LENGTH, b"Connection: close, keep-alive"), goes_on=False),
        served("forged addresses", request(LENGTH, b"X-Forwarded-For: 127.0.0.1", b"Forwarded: for=127.0.0.1")),
        served("forged paths", request(LENGTH, b"X-Original-URL: /sleep", b"X-Rewrite-URL: /sleep")),
        served("a forged method", request(LENGTH, b"X-HTTP-Method-Override: DELETE")),
        served("expectation with its body", request(LENGTH, b"Expect: 100-continue")),
        served("expectation in capitals", request(LENGTH, b"EXPECT: 100-CONTINUE")),
        served("expectation with chunks", request(CHUNKED, b"Expect: 100-continue", body=IN_CHUNKS)),
        served(
            "expectation of 1.0",
            request(LENGTH, b"Expect: 100-continue", line=b"POST " + PATH + b" HTTP/1.0"),
            goes_on=False,
        ),
        answered("expectation without a body", request(b"Content-Length: 0", b"Expect: 100-continue", body=b""), 400),
    ]
    for value in (b"200-ok", b"100-continue, x", b"", b"100", b"x 100-continue", b"100-continue;x"):
        cases.append(refused(f"the expectation {value!r}", request(LENGTH, b"Expect: " + value)))
    return cases


def _mixes() -> list[Case]:
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    one, two = ONE, TWO
    bad = b"POST " + PATH + b" HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    inside = b'{"model":"m","x":"\\r\\n\\r\\nPOST /sleep HTTP/1.1\\r\\n\\r\\n"}'
    raw_inside = b'{"model":"m"}\r\n\r\nPOST /sleep HTTP/1.1\r\nHost: x\r\n\r\n'
    return [
        served("two requests", request(body=one) + request(body=two), one, two),
        served("two with an empty line between", request(body=one) + b"\r\n" + request(body=two), one, two),
        served("chunks then length", request(CHUNKED, body=IN_CHUNKS) + request(body=two), BODY, two),
        served("length then chunks", request(body=two) + request(CHUNKED, body=IN_CHUNKS), two, BODY),
        Case("a sound one, then one refused", request(body=one) + bad, (200, 400), (one,)),
        Case("one refused, then a sound one", bad + request(body=one), (400,)),
        Case("a sound one, then junk", request(body=one) + b"\x00\x01junk\r\n\r\n", (200, 400), (one,)),
        Case("health, then a sound one", health + request(body=one), (200, 200), (one,), goes_on=True),
        Case("a sound one, then health", request(body=one) + health, (200, 200), (one,), goes_on=True),
        Case(
            "unknown, then a sound one",
            request(line=b"POST /sleep HTTP/1.1") + request(body=one), (404, 200), (one,), goes_on=True,
        ),
        Case(
            "wrong method with a body, then a sound one",
            request(line=b"PUT " + PATH + b" HTTP/1.1") + request(body=one), (405, 200), (one,), goes_on=True,
        ),
        Case(
            "GET with a body, then a sound one",
            request(line=b"GET /healthz HTTP/1.1") + request(body=one), (200, 200), (one,), goes_on=True,
        ),
        Case(
            "GET with chunks, then a sound one",
            request(CHUNKED, body=IN_CHUNKS, line=b"GET /healthz HTTP/1.1") + request(body=one), (200, 200), (one,),
            goes_on=True,
        ),
        Case("GET without a length but with bytes behind", health + BODY, (200, 400)),
        Case("too large, then a sound one", request(b"Content-Length: 9000000000") + request(body=one), (413,)),
        Case("no key, then a sound one", request(b"Authorization: Bearer x", body=one) + request(body=two), (401, 200), (two,), goes_on=True),
        Case("no JSON, then a sound one", request(body=b"{") + request(body=two), (400, 200), (two,), goes_on=True),
        served("a body that tells of a request", request(body=inside), inside),
        Case("a body that ends in a request", request(body=raw_inside), (400,), (), goes_on=True),
        served(
            "1.0 with keep-alive, then another",
            request(b"Connection: keep-alive", line=b"POST " + PATH + b" HTTP/1.0", body=one) + request(body=two),
            one, goes_on=False,
        ),
        served("close, then another", request(b"Connection: close", body=one) + request(body=two), one, goes_on=False),
        served(
            "expectation behind another",
            request(body=one) + request(b"Expect: 100-continue", body=two), one, two,
        ),
        served("ten requests", request(body=one) * 10, *([one] * 10)),
        Case("a head without its end", request(LENGTH)[: -len(BODY) - 2], (400,)),
        Case("a request line alone", b"POST " + PATH + b" HTTP/1.1\r\n", (400,)),
        Case("GET with an upgrade, then another", b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", (200,)),
        Case("CL.0 on health", request(LENGTH, line=b"POST /healthz HTTP/1.1", body=BODY), (405,), (), goes_on=True),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (
    *_lengths_and_codings(),
    *_codings(),
    *_chunks(),
    *_headers(),
    *_hosts(),
    *_lines(),
    *_targets(),
    *_hops(),
    *_mixes(),
)
