"""Models from an object store: paged, resumed, never half of one object and half of another, refused with the next step."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSResponse

from nebula_agent.adapters import model_place, object_store
from nebula_agent.adapters.model_place import FetchFailed, RangeRefused
from nebula_agent.adapters.model_places import open_place
from nebula_agent.adapters.object_store import S3Access
from nebula_agent.decisions.model_files import Listing
from nebula_agent.decisions.policy import LocalPolicy, may_have_token
from tests.agent.models.conftest import fetched, keeping, source_of, tree
from tests.support.hub import tensors
from tests.support.object_store import KEY_ID, SECRET, SESSION, Answer, s3_error
from tests.support.relay import Relay

TEXT = "s3://models/team/small"
POLICY = LocalPolicy(sources=("s3:models/*",))
WEIGHTS = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"architectures": ["X"]}',
    "empty.txt": b"",
    "sub/tokenizer.json": b"{}" * 100,
    WEIGHTS: tensors(300_000, 1),
    "model-00002-of-00002.safetensors": tensors(2000, 2),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No credentials of whoever runs the test."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("nebula_agent.loops.model_keeper.TELL_SECONDS", 0.02)


@pytest.fixture
def filled(objects):
    objects.put("models", {f"team/small/{name}": body for name, body in FILES.items()})
    # A console's folder, code, and a neighbour whose name begins alike.
    objects.put("models", {"team/small/": b"", "team/small/sub/": b"", "team/small/modeling.py": b"raise SystemExit"})
    objects.put("models", {"team/small2/config.json": b"no", "team/small/.cache/x.json": b"no"})
    return objects


def place_of(store, text=TEXT, policy=POLICY, access=None, env=None):
    return open_place(source_of(text), policy, store.env if env is None else env, access)


def listed(store, *args, **more) -> Listing:
    place = place_of(store, *args, **more)
    try:
        return place.listing()
    finally:
        place.close()


def why(store, *args, **more) -> FetchFailed:
    with pytest.raises(FetchFailed) as failed:
        listed(store, *args, **more)
    assert failed.value.__cause__ is None or SECRET not in str(failed.value.__cause__)
    for secret in (SECRET, SESSION, KEY_ID):
        assert secret not in str(failed.value)
    return failed.value


@pytest.mark.parametrize("page", ["1000", "2"])
async def test_a_model_comes_whole(tmp_path, filled, monkeypatch, page):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", page)
    async with keeping(tmp_path / "c", filled, POLICY) as keeper:
        source = source_of(TEXT)
        fetch, _ = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        assert tree(await keeper.take(source)) == FILES
        [model] = keeper.reported()
        assert (model.source, model.complete, model.size_bytes) == (TEXT, True, sum(map(len, FILES.values())))
    lists = [path for method, path, _ in filled.asked if (method, path) == ("GET", "/models")]
    assert (len(lists) > 4) is (page == "2")
    assert all(headers["x-amz-security-token"] == SESSION for _, _, headers in filled.asked)


def test_more_than_a_thousand_objects(objects):
    objects.put_raw("models", {f"team/small/{index:04}.md": b"" for index in range(1100)})
    objects.put("models", {"team/small/model.safetensors": tensors(100)})
    assert len(listed(objects).files) == 1101
    assert len([path for _, path, _ in objects.asked if path == "/models"]) == 2


async def test_a_cut_connection_is_gone_on_with(tmp_path, filled):
    async with Relay("127.0.0.1", filled.port) as relay:
        relay.cut_after = 120_000
        env = filled.env | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{relay.port}"}
        async with keeping(tmp_path / "c", filled, POLICY, env=env) as keeper:
            source = source_of(TEXT)
            fetch, told = await fetched(keeper, source)
            assert fetch.here, fetch.failed
            assert tree(await keeper.take(source)) == FILES
        assert relay.cuts == 2
    assert any("try 1 of 4 failed" in words for words in told)
    ranges = filled.gets(WEIGHTS)
    assert ranges[0] is None
    starts = [int(said.removeprefix("bytes=").rstrip("-")) for said in ranges[1:] if said is not None]
    # What came before is not asked for again.
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]
    assert len(filled.gets("config.json")) == 1


async def test_an_object_that_changes_under_its_download_is_fetched_anew(tmp_path, filled):
    fresh = tensors(300_000, 9)
    async with Relay("127.0.0.1", filled.port) as relay:
        relay.cut_after = 120_000
        env = filled.env | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{relay.port}"}

        def overwrite(method: str, path: str) -> None:
            if method == "GET" and path.endswith(WEIGHTS) and len(filled.gets(WEIGHTS)) == 2:
                # Listed as it was, and another by the time the rest of it is asked for.
                relay.cut_after = None
                filled.put("models", {f"team/small/{WEIGHTS}": fresh})

        filled.instead = overwrite
        async with keeping(tmp_path / "c", filled, POLICY, env=env) as keeper:
            source = source_of(TEXT)
            fetch, told = await fetched(keeper, source)
            assert fetch.here, fetch.failed
            assert tree(await keeper.take(source)) == FILES | {WEIGHTS: fresh}
    assert any("changed at its place" in words for words in told)
    assert filled.gets(WEIGHTS)[-1] is None


async def test_credentials_that_expire_under_a_download_lose_nothing_of_it(tmp_path, filled):
    path = tmp_path / "credentials"
    words = "[default]\naws_access_key_id = {}\naws_secret_access_key = x\naws_session_token = y\n"
    path.write_text(words.format("AKIAOLD"))
    path.chmod(0o600)

    def judge(method: str, name: str) -> Answer | None:
        old = "AKIAOLD" in filled.asked[-1][2]["authorization"]
        if not old or not name.endswith("00002.safetensors") or method != "GET":
            return None
        path.write_text(words.format("AKIANEW"))  # as whoever rotates them does
        return s3_error("400 Bad Request", "ExpiredToken")

    filled.instead = judge
    access = S3Access(endpoint=filled.url, credentials_file=path)
    async with keeping(tmp_path / "c", filled, POLICY, env={}, s3=access) as keeper:
        fetch, told = await fetched(keeper, source_of(TEXT))
        assert fetch.here, fetch.failed
        assert any("credentials have expired" in words for words in told)
        assert tree(await keeper.take(source_of(TEXT))) == FILES
    assert filled.gets("config.json") == [None]


async def test_a_model_that_changes_behind_its_download_is_not_put_together_of_two(tmp_path, filled):
    done = []

    def overwrite(method: str, path: str) -> None:
        if not done and method == "GET" and path.endswith("/sub/tokenizer.json"):
            done.append(path)
            filled.put("models", {"team/small/config.json": b'{"architectures": ["Y"]}'})

    filled.instead = overwrite
    async with keeping(tmp_path / "c", filled, POLICY) as keeper:
        source = source_of(TEXT)
        fetch, told = await fetched(keeper, source)
        assert fetch.here, fetch.failed
        assert tree(await keeper.take(source)) == FILES | {"config.json": b'{"architectures": ["Y"]}'}
    assert any("changed at its place" in words for words in told)
    assert len(filled.gets("config.json")) == 2
    assert len(filled.gets(WEIGHTS)) == 1


async def test_a_digest_that_s3_keeps_is_checked(tmp_path, filled):
    body = FILES[WEIGHTS]
    filled.put("models", {f"team/small/{WEIGHTS}": body}, ChecksumAlgorithm="SHA256")
    mark = next(file.mark for file in listed(filled).files if file.path == WEIGHTS)
    filled.instead = lambda method, path: (
        Answer("200 OK", b"!" + body[1:], [("etag", mark)]) if method == "GET" and path.endswith(WEIGHTS) else None
    )
    async with keeping(tmp_path / "c", filled, POLICY) as keeper:
        fetch, _ = await fetched(keeper, source_of(TEXT))
        assert "checksum" in fetch.failed


def test_a_digest_of_parts_is_none_of_the_object(filled):
    filled.put("models", {f"team/small/{WEIGHTS}": FILES[WEIGHTS]}, ChecksumAlgorithm="SHA256")
    key, client = "team/small/big.safetensors", filled.client
    upload = client.create_multipart_upload(Bucket="models", Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    part = client.upload_part(
        Bucket="models", Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 100, ChecksumAlgorithm="SHA256"
    )
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    client.complete_multipart_upload(Bucket="models", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    files = {file.path: file for file in listed(filled).files}
    assert files[WEIGHTS].sha256 is not None
    assert files["big.safetensors"].sha256 is None
    assert files["big.safetensors"].mark.endswith('-1"')


@pytest.mark.parametrize("said", [None, "", "AAAA", "not base64!", "kM5Xq0nqNQxS3wDdHpUpnw==-2", "é"])
def test_what_is_no_sha256_of_bytes_is_none(said):
    assert object_store._sha256(said) is None


@pytest.mark.parametrize("key", ["/abs.json", "a//b.json", "a\\b.json", "a\x01b.json", "a\x1b[2J.json"])
async def test_a_key_that_would_leave_its_folder_makes_the_model_unusable(tmp_path, filled, key):
    filled.put_raw("models", {f"team/small/{key}": b"{}"})
    async with keeping(tmp_path / "c", filled, POLICY) as keeper:
        fetch, _ = await fetched(keeper, source_of(TEXT))
        assert "no plain file name" in fetch.failed
        assert fetch.failed.isprintable()
        assert keeper.reported() == ()


@pytest.mark.parametrize("key", ["../up.json", "a/../../up.json", "..", "./x.json"])
async def test_a_key_that_climbs_is_left_where_it_is(tmp_path, filled, key):
    filled.put_raw("models", {f"team/small/{key}": b"{}"})
    async with keeping(tmp_path / "c", filled, POLICY) as keeper:
        fetch, _ = await fetched(keeper, source_of(TEXT))
        assert fetch.here, fetch.failed
        assert tree(await keeper.take(source_of(TEXT))) == FILES
    assert not list(tmp_path.rglob("up.json"))


REFUSALS = [
    (s3_error("404 Not Found", "NoSuchBucket"), "no bucket models", "Correct `source`", True),
    (s3_error("403 Forbidden", "AccessDenied"), "denies access", "s3:ListBucket on models", True),
    (s3_error("403 Forbidden", "InvalidAccessKeyId", AWSAccessKeyId=KEY_ID), "refuses the credentials", "Renew", True),
    (
        s3_error("403 Forbidden", "SignatureDoesNotMatch", StringToSign=SESSION),
        "refuses the credentials",
        "Renew",
        True,
    ),
    (s3_error("403 Forbidden", "InvalidToken"), "refuses the credentials", "Renew", True),
    (s3_error("400 Bad Request", "ExpiredToken"), "credentials have expired", "goes on where it was", False),
    (s3_error("403 Forbidden", "RequestTimeTooSkewed"), "clock differs", "Set the clock", True),
    (s3_error("403 Forbidden", "InvalidObjectState"), "lies in an archive", "Restore it", True),
    (s3_error("503 Slow Down", "SlowDown"), "answered 503 (SlowDown)", None, False),
    (s3_error("500 Oops", "InternalError"), "answered 500 (InternalError)", None, False),
    (s3_error("400 Bad Request", "EntityTooLarge"), "refused it: 400 (EntityTooLarge)", "Look at `source`", True),
    (Answer("502 Bad Gateway", b"<html>oops</html>"), "answered 502", "may not speak S3", False),
    (Answer("200 OK", b"<html>hello"), "answered 500", "may not speak S3", False),
    (Answer("200 OK", b"{}", [("content-type", "application/json")]), "answered 500", "may not speak S3", False),
]


@pytest.mark.parametrize(("answer", "said", "hint", "final"), REFUSALS)
def test_a_refusal_says_what_to_do_next(filled, answer, said, hint, final):
    filled.instead = lambda _method, _path: answer
    failed = why(filled)
    assert said in failed.message
    assert failed.final is final
    assert (hint is None and failed.hint is None) or hint in failed.hint


def test_a_bucket_in_another_region_is_named(filled):
    answer = s3_error("301 Moved", "PermanentRedirect", Endpoint="models.s3-eu-west-1.amazonaws.com")
    answer.headers.append(("x-amz-bucket-region", "eu-west-1"))
    filled.instead = lambda _method, _path: answer
    failed = why(filled)
    assert "bucket models is in region eu-west-1" in failed.message
    assert failed.final
    assert "region" in failed.hint


class _Raw:
    """Of an answer that botocore is given in the place of the network's."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


@pytest.mark.parametrize("allowed", [True, False])
def test_another_region_is_followed_to_where_the_policy_allows(filled, allowed):
    page = b"<ListBucketResult><Contents><Key>team/small/a.md</Key><Size>1</Size></Contents></ListBucketResult>"
    moved = s3_error("", "PermanentRedirect").body
    seen = []

    def network(request, **_):
        host = urlsplit(request.url).hostname
        seen.append((host, "us-east-1/s3" in str(request.headers["authorization"])))
        if "eu-west-1" in host:
            return AWSResponse(request.url, 200, {}, _Raw(page))
        return AWSResponse(request.url, 301, {"x-amz-bucket-region": "eu-west-1"}, _Raw(moved))

    env = {name: text for name, text in filled.env.items() if "ENDPOINT" not in name}
    hosts = ("*.amazonaws.com",) if allowed else ("*.us-east-1.amazonaws.com", "models.s3.amazonaws.com")
    place = open_place(source_of(TEXT), LocalPolicy(sources=("s3:*",), model_hosts=hosts), env, S3Access())
    place._client.meta.events.register_last("before-send.s3", network)
    try:
        if allowed:
            assert [file.path for file in place.listing().files] == ["a.md"]
            assert seen[1:] == [("models.s3.eu-west-1.amazonaws.com", False)]
        else:
            with pytest.raises(FetchFailed, match=r"does not allow models from models\.s3\.eu-west-1") as failed:
                place.listing()
            assert failed.value.final
            assert len(seen) == 1
    finally:
        place.close()


def test_an_empty_place_is_said_so_with_what_is_near(filled):
    assert "There is 'team/small/'" in why(filled, "s3:models/team/smal").hint
    assert "There is 'team/small/config.json'" in why(filled, "s3:models/team/small/config.json").hint
    assert why(filled, "s3:models/other").hint == "Correct `source`"
    assert "no bucket nothing" in why(filled, "s3:nothing").message


def test_a_bucket_without_a_prefix_is_a_model_too(objects):
    objects.put("whole", {"config.json": b"{}", "model.safetensors": tensors(100)})
    assert {file.path for file in listed(objects, "s3:whole").files} == {"config.json", "model.safetensors"}


def test_too_much_is_not_listed_to_its_end(filled, monkeypatch):
    monkeypatch.setattr(object_store, "MOST_FILES", 3)
    assert "more than 3 objects" in why(filled).message


def test_a_list_without_an_end_is_left(filled, monkeypatch):
    monkeypatch.setattr(object_store, "_MOST_PAGES", 5)
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>"
    filled.instead = lambda _method, _path: Answer("200 OK", page)
    assert "no end" in why(filled).message
    assert len(filled.asked) == 5


def test_an_endpoint_that_hangs_is_left_in_time(filled, monkeypatch):
    monkeypatch.setattr(model_place, "STALL_SECONDS", 0.1)
    filled.instead = lambda _method, _path: Answer("200 OK", hangs=True)
    failed = why(filled)
    assert "does not answer" in failed.message
    assert not failed.final


def test_nobody_listens(filled):
    failed = why(filled, env=filled.env | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})
    assert "127.0.0.1:1" in failed.message
    assert not failed.final


@pytest.mark.parametrize("status", [200, 206, 416])
def test_a_store_without_ranges_or_marks_is_seen_through(filled, status):
    place = place_of(filled)
    try:
        listing = place.listing()
        file = next(each for each in listing.files if each.path == WEIGHTS)
        answers = {
            200: Answer("200 OK", FILES[WEIGHTS], [("etag", file.mark)]),
            206: Answer("206 Partial", b"x", [("etag", file.mark), ("content-range", "bytes 7-7/8")]),
            416: s3_error("416 Range", "InvalidRange"),
        }
        filled.instead = lambda _method, _path: answers[status]
        if status == 200:
            with place.open(listing, file, 10) as body:
                assert body.starts_at == 0
                assert b"".join(body) == FILES[WEIGHTS]
        else:
            with (
                pytest.raises(
                    RangeRefused if status == 416 else FetchFailed, match=r"nothing after|asked for the bytes"
                ),
                place.open(listing, file, 10),
            ):
                pass
        filled.instead = lambda _method, _path: Answer("200 OK", b"other", [("etag", '"other"')])
        with pytest.raises(FetchFailed, match="changed at its place"), place.open(listing, file, 0):
            pass
    finally:
        place.close()


def test_a_store_without_marks_is_refused(filled):
    filled.instead = lambda method, _path: Answer("200 OK", b"", []) if method == "HEAD" else None
    assert "gives no ETag" in why(filled).message


def test_without_credentials_nothing_is_asked(filled):
    failed = why(filled, env={"AWS_ENDPOINT_URL_S3": filled.url})
    assert "no credentials" in failed.message
    assert "credentials_file" in failed.hint
    assert failed.final
    assert filled.asked == []


def test_a_public_bucket_is_asked_unsigned(filled):
    filled.put("models", {f"team/small/{name}": body for name, body in FILES.items()}, ACL="public-read")
    assert listed(filled, access=S3Access(anonymous=True)).files
    assert all("authorization" not in headers for _, _, headers in filled.asked)


def test_a_file_of_the_settings_goes_before_the_environment_and_is_private(filled, tmp_path):
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = x\n[other]\n")
    access = S3Access(credentials_file=path, endpoint=filled.url, region="eu-west-1")
    path.chmod(0o644)
    failed = why(filled, access=access)
    assert "may be read or written by other users" in failed.message
    path.chmod(0o600)
    assert listed(filled, access=access).files
    assert all("AKIAFILE" in headers["authorization"] for _, _, headers in filled.asked)
    assert all("/eu-west-1/s3/" in headers["authorization"] for _, _, headers in filled.asked)
    missing = why(filled, access=S3Access(credentials_file=path, endpoint=filled.url, profile="nobody"))
    assert "nobody" in missing.message
    assert missing.final


@pytest.mark.parametrize("endpoint", ["ftp://x", "https://[::1/x", "https://", "store"])
def test_an_endpoint_that_is_none_is_said_so(filled, endpoint):
    assert "no address" in why(filled, access=S3Access(endpoint=endpoint)).message


def test_a_host_the_policy_does_not_name_gets_no_request(filled):
    failed = why(filled, policy=LocalPolicy(sources=("s3:*",), model_hosts=("s3.example",)))
    assert "does not allow models from 127.0.0.1" in failed.message
    assert failed.final
    assert filled.asked == []


@pytest.mark.parametrize("allowed", [False, True])
def test_nothing_goes_in_the_clear_unless_the_policy_names_the_host(filled, monkeypatch, allowed):
    # The store as a machine across the network: only that its address is not called loopback differs.
    monkeypatch.setattr(
        object_store,
        "may_have_token",
        lambda policy, url: may_have_token(policy, url.replace("127.0.0.1", "store.lan")),
    )
    policy = LocalPolicy(sources=("s3:*",), clear_token_hosts=("store.lan",) if allowed else ())
    if allowed:
        assert listed(filled, policy=policy).files
    else:
        failed = why(filled, policy=policy)
        assert "over plain http" in failed.message
        assert "clear_token_hosts" in failed.hint
        assert failed.final
        assert filled.asked == []


def test_names_are_addressed_by_path_or_by_host(filled):
    place = place_of(filled, access=S3Access(endpoint="https://s3.example", path_style=False))
    seen = []
    place._client.meta.events.register_first("before-send.s3", lambda request, **_: seen.append(request.url) or halt())

    def halt():
        raise FetchFailed("enough")

    with pytest.raises(FetchFailed, match="enough"):
        place.listing()
    place.close()
    assert seen[0].startswith("https://models.s3.example/?")


def test_without_the_library_the_extra_is_named(filled, monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    failed = why(filled)
    assert "nebula[s3]" in failed.hint
    assert failed.final


def test_its_log_never_holds_a_signature(filled, caplog):
    caplog.set_level(logging.DEBUG)
    listed(filled)
    assert SESSION not in caplog.text
    assert "AWS4-HMAC" not in caplog.text


async def test_the_policy_of_the_node_decides_first(tmp_path, filled):
    async with keeping(tmp_path / "c", filled, LocalPolicy()) as keeper:
        assert "fetched only where `sources` lists them" in keeper.why_refused(source_of(TEXT))
    async with keeping(tmp_path / "d", filled, POLICY) as keeper:
        assert keeper.why_refused(source_of(TEXT)) is None
        assert "does not allow source" in keeper.why_refused(source_of("s3:other/x"))


def test_an_agent_that_fetches_none_does_not_carry_the_library():
    code = "import sys, nebula_agent.agent; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_what_a_helper_for_credentials_prints_is_shown_to_nobody(tmp_path, filled, monkeypatch):
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\necho 'cannot renew {SECRET}' >&2\nexit 1\n")
    helper.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[profile helped]\ncredential_process = {helper}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    env = {name: value for name, value in filled.env.items() if not name.startswith("AWS_ACCESS")}
    refused = why(filled, access=S3Access(profile="helped"), env=env)
    assert "cannot be had (CredentialRetrievalError)" in refused.message
    assert refused.final
    assert refused.__suppress_context__, "a traceback in a log would show it too"
