"""Request heads: framing and wishes, for any bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.framing import check_head, too_many_bytes
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.wishes import NO_WISHES, Wishes, read_wishes, request_id, traceparent

GOOD = [(b"host", b"nebula:8081"), (b"content-length", b"5")]
PATH = b"/v1/chat/completions"


def check(
    headers: list[tuple[bytes, bytes]], *, method: bytes = b"POST", target: bytes = PATH, version: str = "1.1"
) -> Refusal | None:
    return check_head(method, target, version, headers, dict(headers))


NAMES = st.sampled_from(
    [b"host", b"content-length", b"transfer-encoding", b"x_a", b"x-a", b"trailer", b"upgrade", b"expect"]
) | st.binary(min_size=1, max_size=8)
VALUES = st.sampled_from([b"nebula", b"5", b"chunked", b"gzip, chunked", b"100-continue", b""]) | st.binary(max_size=8)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.sampled_from(["1.0", "1.1", "2.0"]), st.binary(max_size=20))
def test_what_is_let_in_has_one_framing(headers: list[tuple[bytes, bytes]], version: str, target: bytes) -> None:
    refusal = check(headers, version=version, target=b"/" + target)
    names = [name for name, _ in headers]
    if refusal is None:
        assert names.count(b"host") == 1 or (version == "1.0" and b"host" not in names)
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert not any(b"_" in name for name in names)
        assert b"trailer" not in names
        assert b"/../" not in target
        assert version != "2.0"
    else:
        assert refusal.status in {400, 415, 431}
        assert refusal.hint


@pytest.mark.parametrize("host", [b"a", b"a.b-c_d:80", b"127.0.0.1:1", b"[::1]:8081", b"[::1]", b""])
def test_hosts_that_are(host: bytes) -> None:
    assert check([(b"host", host)]) is None


@pytest.mark.parametrize("host", [b"a/b", b"a?", b"a b", b"a@b", b"a:b", b"a:123456", b"[x]", b"a,b", b"\xff"])
def test_hosts_that_are_not(host: bytes) -> None:
    refusal = check([(b"host", host)])
    assert refusal is not None
    assert refusal.status == 400


def test_a_query_may_hold_what_a_path_may_not() -> None:
    assert check(GOOD, target=PATH + b"?a=//..%2f") is None
    assert check(GOOD, target=b"/v1/%2e%2e/x") is not None


def test_sizes() -> None:
    assert check([(b"host", b"a"), *((b"x-%d" % number, b"1") for number in range(99))]) is None
    refusal = check([(b"host", b"a"), *((b"x-%d" % number, b"1") for number in range(100))])
    assert refusal is not None
    assert refusal.status == 431
    assert too_many_bytes(GOOD, PATH) is None
    assert too_many_bytes([(b"x", b"1" * 40_000)], PATH) is not None


def test_upgrade_is_left_alone_where_it_does_no_harm() -> None:
    assert check([*GOOD, (b"upgrade", b"h2c")]) is not None
    assert check([(b"host", b"a"), (b"upgrade", b"h2c")], method=b"GET", target=b"/healthz") is None


@pytest.mark.parametrize(
    ("headers", "wishes"),
    [
        ({}, NO_WISHES),
        ({b"x-nebula-unknown": b"1"}, NO_WISHES),
        ({b"x-nebula-strategy": b"round_robin"}, Wishes(strategy="round_robin")),
        ({b"x-nebula-replica": b"m-r0", b"x-nebula-priority": b"-3"}, Wishes(replica="m-r0", priority=-3)),
        ({b"x-nebula-no-retry": b"1"}, Wishes(no_retry=True)),
        ({b"x-nebula-no-retry": b"false"}, Wishes()),
    ],
)
def test_wishes(headers: dict[bytes, bytes], wishes: Wishes) -> None:
    assert read_wishes(headers) == wishes


@given(st.dictionaries(st.sampled_from([b"x-nebula-strategy", b"x-nebula-replica", b"x-nebula-priority"]), st.binary()))
def test_any_wish_is_read_or_refused(headers: dict[bytes, bytes]) -> None:
    found = read_wishes(headers)
    if isinstance(found, Refusal):
        assert (found.status, bool(found.hint)) == (400, True)


@pytest.mark.parametrize("bad", [b"", b"a b", b"a\nb", b"x" * 65, "é".encode(), b"a;b"])
def test_ids_that_could_break_a_log_line_are_not_kept(bad: bytes) -> None:
    assert request_id({b"x-request-id": bad}) is None
    assert traceparent({b"traceparent": bad}) is None


def test_ids_that_are_kept() -> None:
    assert request_id({b"x-request-id": b"A.b_c-1"}) == b"A.b_c-1"
    assert request_id({}) is None
