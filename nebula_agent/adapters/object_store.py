"""Object stores that speak S3 (AWS, MinIO, Ceph, …), through botocore, which knows signatures, regions and credentials.

A bucket has no commits: a model there is what its keys hold at the moment. So each object is known by its ETag, every
read says which one it wants (`If-Match`), and one that is overwritten meanwhile is an error and never half of one file and
half of another. An ETag tells contents apart and is no digest of them (of a multipart upload, or an encrypted object, it
is none at all): what is checked against is the SHA-256 that S3 keeps of an object, where it was uploaded with one.

Credentials are the node's own: a file its settings name, else the environment of the agent, else what botocore finds (profiles, web identity,
the machine's role). They go to hosts the policy allows, and never over plain http unless it names the host.

botocore takes 26 MB; it is imported by the first download from such a place.
"""

import base64
import binascii
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nebula_agent.adapters import model_place
from nebula_agent.adapters.model_place import Body, FetchFailed, Part, check_address, host_of, without_login
from nebula_agent.adapters.s3_refusals import refusal
from nebula_agent.decisions.model_files import MOST_FILES, Listing, RemoteFile, choose_files
from nebula_agent.decisions.policy import LocalPolicy, may_have_token
from nebula_core.errors import SettingsError
from nebula_core.records.model_source import ModelSource
from nebula_core.security.files import read_secret

#: Small enough that a slow store still gives one within a moment, so that a download can be stopped.
CHUNK = 128 * 1024
#: Of a listing; each holds up to 1000 keys, or none.
_MOST_PAGES = 1000
#: Of one call, by botocore; the keeper of models tries again after that.
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class S3Access:
    """By the agent's settings; what is None is left to the environment and to botocore."""

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    #: In AWS's own form; readable by the agent alone.
    credentials_file: Path | None = None
    #: Certificates that sign the endpoint's.
    ca_file: Path | None = None
    #: `endpoint/bucket` instead of `bucket.endpoint`; None: with an endpoint of one's own.
    path_style: bool | None = None
    #: Public buckets: nothing is signed.
    anonymous: bool = False


def check_access(access: S3Access) -> None:
    """What can be told without asking the store. Raises FetchFailed."""
    if importlib.util.find_spec("botocore") is None:
        raise _missing()
    if access.credentials_file is not None:
        _check_secret(access.credentials_file)


def _missing() -> FetchFailed:
    words = "models from s3: want botocore, which is not installed here"
    return FetchFailed(words, hint="Install nebula[s3] on this node", final=True)


class S3Place:
    """Everything below `bucket/prefix/`."""

    def __init__(self, source: ModelSource, policy: LocalPolicy, env: Mapping[str, str], access: S3Access) -> None:
        self._source = source
        self._policy = policy
        self._bucket, _, prefix = source.name.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        try:
            import botocore.config  # noqa: PLC0415 - by the first download
            import botocore.exceptions  # noqa: PLC0415 - the same
            import botocore.session  # noqa: PLC0415 - the same
        except ImportError as error:
            raise _missing() from error
        # It writes signed headers to its log, in debug.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self._library = botocore
        endpoint = access.endpoint or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
        if endpoint is not None:
            check_address(policy, endpoint)
        self._host = host_of(endpoint or "") or "the object store"
        with self._translated(source.text):
            self._client = self._open(endpoint, env, access)
        self._host = host_of(self._client.meta.endpoint_url)

    def _open(self, endpoint: str | None, env: Mapping[str, str], access: S3Access) -> Any:
        profile, keys = access.profile, {}
        if access.credentials_file is not None:
            _check_secret(access.credentials_file)
            # A named profile also keeps botocore from taking others of the environment first.
            profile = profile or "default"
        session = self._library.session.Session(profile=profile)
        if access.credentials_file is not None:
            session.set_config_variable("credentials_file", str(access.credentials_file))
        elif profile is None and env.get("AWS_ACCESS_KEY_ID"):
            keys = {
                "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": env.get("AWS_SECRET_ACCESS_KEY"),
                "aws_session_token": env.get("AWS_SESSION_TOKEN"),
            }
        region = access.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
        usual = "auto" if endpoint is None else "path"
        style = usual if access.path_style is None else "path" if access.path_style else "virtual"
        config = self._library.config.Config(
            signature_version=self._library.UNSIGNED if access.anonymous else None,
            connect_timeout=model_place.CONNECT_SECONDS,
            read_timeout=model_place.STALL_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": style},
            # Stores that are not AWS's do not all know them; what is whole is told by length and our own digest.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = session.create_client(
            "s3",
            region_name=region or session.get_config_variable("region") or "us-east-1",
            endpoint_url=endpoint,
            verify=None if access.ca_file is None else str(access.ca_file),
            config=config,
            **keys,
        )
        client.meta.events.register("before-send.s3", self._before_send)
        return client

    def _before_send(self, request: Any, **_: object) -> None:
        """Each request, also one that botocore sends to another region: raises FetchFailed where it must not go."""
        check_address(self._policy, request.url)
        if not may_have_token(self._policy, request.url):
            raise FetchFailed(
                f"{self._source.text}: nothing is asked of {host_of(request.url)} over plain http",
                hint="Use an https endpoint, or add its host to `clear_token_hosts` of this node's policy",
                final=True,
            )

    def close(self) -> None:
        self._client.close()

    def listing(self) -> Listing:
        """With the SHA-256 of what will be fetched, where the store has it: that takes a request for each such file."""
        with self._translated(self._source.text):
            files = tuple(
                RemoteFile(each["Key"].removeprefix(self._prefix), each["Size"], None, each.get("ETag"))
                for each in self._objects()
                # A key that ends so is how consoles draw a folder.
                if not each["Key"].endswith("/")
            )
        if not files:
            raise self._nothing()
        chosen = choose_files(self._source, Listing(None, files), pickled=self._policy.pickled_weights)
        if isinstance(chosen, str):
            return Listing(None, files)  # whoever asked finds the same
        asked = {file.path: self._asked(file) for file in chosen}
        return Listing(None, tuple(asked.get(file.path, file) for file in files))

    def _objects(self) -> Iterator[dict[str, Any]]:
        following: dict[str, str] = {}
        found = 0
        for _ in range(_MOST_PAGES):
            page = self._call("list_objects_v2", self._source.text, Prefix=self._prefix, **following)
            contents = page.get("Contents", ())
            found += len(contents)
            if found > MOST_FILES:
                raise FetchFailed(
                    f"{self._source.text} has more than {MOST_FILES} objects", hint="Name a longer prefix", final=True
                )
            yield from contents
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": page.get("NextContinuationToken") or ""}
        raise FetchFailed(f"{self._source.text}: the list of its objects has no end", final=True)

    def _nothing(self) -> FetchFailed:
        hint = "Correct `source`"
        if self._prefix:
            page = self._call("list_objects_v2", self._source.text, Prefix=self._prefix.rstrip("/"), MaxKeys=1)
            near = next((each.get("Key") for each in page.get("Contents", ())), None)
            if near is not None:
                hint = f"There is {near[:200]!a}; correct `source`, which names a folder"
        return FetchFailed(f"{self._source.text}: {self._host} has nothing below it", hint=hint, final=True)

    def _asked(self, file: RemoteFile) -> RemoteFile:
        what = f"{self._source.text} {file.path}"
        said = self._call("head_object", what, Key=self._prefix + file.path, ChecksumMode="ENABLED")
        mark = said.get("ETag")
        if not mark:
            raise FetchFailed(f"{what}: {self._host} gives no ETag, by which a changed object is known", final=True)
        # Of an upload in parts it is a digest of digests; S3 says so by `-N` at its end, others only in the ETag.
        digest = None if "-" in mark else _sha256(said.get("ChecksumSHA256"))
        return RemoteFile(file.path, said.get("ContentLength", file.size), digest, mark)

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        del listing  # a bucket has no commits; an object is asked for by its mark
        what = f"{self._source.text} {file.path}"
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._call("get_object", what, Key=self._prefix + file.path, IfMatch=file.mark, **wanted)
        body, said = answer["Body"], answer.get("ContentRange")
        try:
            if answer.get("ETag") != file.mark:
                raise refusal(
                    "PreconditionFailed", 412, what, self._bucket, self._host
                )  # a store that knows no If-Match
            if said is not None and not said.startswith(f"bytes {offset}-"):
                raise FetchFailed(f"{what}: asked for the bytes from {offset} on, got {said[:80]!a}")
            yield Part(0 if said is None else offset, self._chunks(body, what))
        finally:
            body.close()

    def _chunks(self, body: Any, what: str) -> Iterator[bytes]:
        with self._translated(what):
            yield from body.iter_chunks(CHUNK)

    def _call(self, verb: str, what: str, **wanted: object) -> dict[str, Any]:
        """Raises FetchFailed."""
        with self._translated(what):
            answer: dict[str, Any] = getattr(self._client, verb)(Bucket=self._bucket, **wanted)
            return answer

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Errors of the library in our own words. Raises FetchFailed."""
        errors, where = self._library.exceptions, self._host
        try:
            yield
        except errors.ClientError as error:
            raise self._refused(error.response, what) from error
        except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
            hint = "Set model_cache.s3.credentials_file of its agent, or `anonymous` there for a public bucket"
            raise FetchFailed(f"{what}: this node has no credentials for {where}", hint=hint, final=True) from error
        except errors.CredentialRetrievalError as error:
            # Its text may repeat what the helper that was asked for them printed.
            words = f"{what}: the credentials of this node cannot be had ({type(error).__name__})"
            raise FetchFailed(
                words, hint="Look at the agent's profile for S3, and the helper it names", final=True
            ) from None
        except (errors.ProfileNotFound, errors.ConfigParseError) as error:
            words = f"{what}: the credentials of this node cannot be read: {_words(error)}"
            raise FetchFailed(words, hint="Look at model_cache.s3 of its agent", final=True) from error
        except errors.SSLError as error:
            words = f"{what}: {where}: {_words(error)}"
            raise FetchFailed(words, hint="Set model_cache.s3.ca_file to what signs its certificate") from error
        except (errors.ReadTimeoutError, errors.ConnectTimeoutError) as error:
            raise FetchFailed(f"{what}: {where} does not answer ({type(error).__name__})") from error
        except (errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError) as error:
            raise FetchFailed(f"{what}: {where}: {_words(error)}") from error
        except (self._library.parsers.ResponseParserError, KeyError) as error:
            words = f"{what}: {where} does not speak S3"
            raise FetchFailed(words, hint="Look at model_cache.s3.endpoint", final=True) from error
        except (errors.BotoCoreError, ValueError) as error:
            raise FetchFailed(f"{what}: {where}: {_words(error)}", final=True) from error

    def _refused(self, response: Mapping[str, Any], what: str) -> FetchFailed:
        said, facts = response.get("Error", {}), response.get("ResponseMetadata", {})
        region = said.get("Region") or facts.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        code = _plain(said.get("Code")) or "no code"
        status = int(facts.get("HTTPStatusCode") or 0)
        return refusal(code, status, what, self._bucket, self._host, region=_plain(region))


def _plain(said: object) -> str | None:
    """A word of a stranger, to be shown."""
    return ascii(said)[1:-1][:60] if isinstance(said, str) and said else None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {without_login(str(error))[:200]}"


def _check_secret(path: Path) -> None:
    try:
        read_secret(path)
    except SettingsError as error:
        raise FetchFailed(error.message, hint=error.hint, final=True) from error


def _sha256(said: str | None) -> str | None:
    """In hex; None where there is none."""
    with suppress(binascii.Error, ValueError):
        digest = base64.b64decode(said or "", validate=True)
        if len(digest) == 32:
            return digest.hex()
    return None
