"""The places models come from: hubs over HTTP, and folders; object stores are met in `object_store`.

A hub is listed through `huggingface_hub`, which knows endpoints, tokens and what each refusal means; the bytes of
its files come by plain ranged HTTP, because only so can they be written through the cache's own open folders, resumed where a
killed agent left off, hashed on the way and stopped within a second. ModelScope has an HTTP API of its own (its
documentation, "Model API": `/api/v1/models/{id}/repo/files`).

Heavy libraries are imported by the first download, not by an agent that never makes one.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from nebula_agent.adapters.model_place import (
    CHUNK,
    CONNECT_SECONDS,
    STALL_SECONDS,
    Body,
    FetchFailed,
    Part,
    Place,
    RangeRefused,
    check_address,
    host_of,
    without_login,
)
from nebula_agent.adapters.object_store import S3Access, S3Place
from nebula_agent.decisions.model_files import Listing, RemoteFile
from nebula_agent.decisions.policy import LocalPolicy, may_have_token
from nebula_core.records.model_source import ModelSource, SourceKind

_REDIRECTS = 6
#: ModelScope's own word for it, under a status of 200.
_NO_SUCH_MODEL = 10010205001
_MOST_LISTING_BYTES = 32 * 1024**2


def open_place(source: ModelSource, policy: LocalPolicy, env: Mapping[str, str], s3: S3Access | None = None) -> Place:
    """Raises FetchFailed: its library is missing."""
    match source.kind:
        case SourceKind.HUB:
            return HubPlace(source, policy, env)
        case SourceKind.MODELSCOPE:
            return ModelScopePlace(source, policy, env)
        case SourceKind.S3:
            return S3Place(source, policy, env, s3 or S3Access())
        case _:
            return FolderPlace(Path(source.name))


class HttpReader:
    """Ranged GETs with redirects followed by hand: each host is judged, and a token never leaves the host it is for."""

    def __init__(self, policy: LocalPolicy, endpoint: str) -> None:
        import httpx  # noqa: PLC0415 - by the first download

        self._httpx = httpx
        self._policy = policy
        #: Else it would go in the clear.
        self.sends_token = may_have_token(policy, endpoint)
        timeout = httpx.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(timeout=timeout, follow_redirects=False, trust_env=True)

    def close(self) -> None:
        self._client.close()

    def refused(self, status: int, what: str, where: str) -> FetchFailed:
        if status in {401, 403} and not self.sends_token:
            return FetchFailed(
                f"{what}: {where} may want a token ({status}), and none is sent over plain http",
                hint="Use an https endpoint, or add its host to `clear_token_hosts` of this node's policy",
                final=True,
            )
        return refused(status, what, where)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], what: str, offset: int = 0) -> Iterator[Any]:
        """The response; status 200 or 206. Raises FetchFailed."""
        sent = {"accept-encoding": "identity", **{name.lower(): value for name, value in headers.items()}}
        if offset:
            sent["range"] = f"bytes={offset}-"
        for _ in range(_REDIRECTS):
            check_address(self._policy, url)
            try:
                with self._client.stream("GET", url, headers=sent) as response:
                    if response.is_redirect:
                        following = urljoin(url, response.headers.get("location", ""))
                        if not _same_origin(url, following):
                            sent.pop("authorization", None)
                            sent.pop("cookie", None)
                        url = following
                        continue
                    if response.status_code not in {200, 206, 416}:
                        raise self.refused(response.status_code, what, host_of(url))
                    yield response
                    return
            except self._httpx.HTTPError as error:
                name = type(error).__name__
                words = f"{name}: {without_login(str(error))}" if str(error) else name
                raise FetchFailed(f"{what}: {host_of(url)}: {words[:300]}") from error
        raise FetchFailed(f"{what}: redirected {_REDIRECTS} times", hint="Look at the endpoint", final=True)

    @contextmanager
    def body(self, url: str, headers: Mapping[str, str], what: str, offset: int) -> Iterator[Body]:
        with self.get(url, headers, what, offset) as response:
            if response.status_code == 416:
                raise RangeRefused(f"{what}: the server has nothing after {offset} bytes; it is fetched from the start")
            starts_at = 0
            if response.status_code == 206:
                said = response.headers.get("content-range", "")
                if not said.startswith(f"bytes {offset}-"):
                    raise FetchFailed(f"{what}: asked for the bytes from {offset} on, got {said[:80]!r}")
                starts_at = offset
            yield Part(starts_at, response.iter_raw())

    def json(self, url: str, headers: Mapping[str, str], what: str) -> Any:
        content = b""
        with self.get(url, headers, what) as response:
            for chunk in response.iter_bytes(CHUNK):
                content += chunk
                if len(content) > _MOST_LISTING_BYTES:
                    raise FetchFailed(f"{what}: its list of files has no end", final=True)
        import json  # noqa: PLC0415 - beside its one use

        try:
            return json.loads(content)
        except ValueError as error:
            raise FetchFailed(f"{what}: {host_of(url)} does not speak the API of a hub", final=True) from error


def _remote(path: object, size: object, digest: object, mark: object) -> RemoteFile:
    """A row of somebody's JSON, which may hold anything. Raises TypeError."""
    if not isinstance(path, str) or not (size is None or isinstance(size, int)):
        raise TypeError("a file without a name or size")
    return RemoteFile(path, size, _text(digest), _text(mark))


def _text(said: object) -> str | None:
    """Raises TypeError."""
    if said is None or isinstance(said, str):
        return said
    raise TypeError(f"{type(said).__name__} in the place of a text")


def _same_origin(url: str, following: str) -> bool:
    """Whether what is for one may be told to the other: the same host, and not in the clear where it was not before."""
    before, after = urlsplit(url), urlsplit(following)
    return before.netloc == after.netloc and after.scheme in {"https", before.scheme}


def refused(status: int, what: str, where: str) -> FetchFailed:
    """What a status means for somebody who wanted a model."""
    if status == 401:
        return FetchFailed(
            f"{what}: {where} wants a token (401)", hint="Set HF_TOKEN for the agent, or correct it", final=True
        )
    if status == 403:
        return FetchFailed(
            f"{what} is gated or forbidden at {where} (403)",
            hint="Accept its conditions there with the account of the agent's token",
            final=True,
        )
    if status in {404, 410}:
        return FetchFailed(f"{what} is not at {where} ({status})", hint="Correct `source`", final=True)
    return FetchFailed(f"{what}: {where} answered {status}")


class HubPlace:
    """Hugging Face's API, wherever `HF_ENDPOINT` points."""

    def __init__(self, source: ModelSource, policy: LocalPolicy, env: Mapping[str, str]) -> None:
        self._source = source
        self._endpoint = (env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._policy = policy
        self._reader = HttpReader(policy, self._endpoint)
        #: None lets the library find one, False sends none.
        self._token = None if self._reader.sends_token else False
        try:
            import huggingface_hub  # noqa: PLC0415 - by the first download
            from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - the same
        except ImportError as error:
            raise FetchFailed("huggingface_hub is not installed", hint="Install nebula[agent]", final=True) from error
        self._library = huggingface_hub
        self._build_headers = build_hf_headers

    def close(self) -> None:
        self._reader.close()

    def listing(self) -> Listing:
        from huggingface_hub import errors  # noqa: PLC0415 - with its package

        source, where = self._source, host_of(self._endpoint)
        check_address(self._policy, self._endpoint)
        try:
            found = self._library.HfApi(endpoint=self._endpoint, token=self._token).model_info(
                source.name, revision=source.revision, files_metadata=True, timeout=STALL_SECONDS
            )
        except errors.GatedRepoError as error:
            raise self._reader.refused(403, source.text, where) from error
        except errors.RevisionNotFoundError as error:
            raise FetchFailed(
                f"{source.name} has no revision {source.revision} at {where}", hint="Correct `source`", final=True
            ) from error
        except errors.RepositoryNotFoundError as error:
            status = error.response.status_code if error.response is not None else 404
            if not self._reader.sends_token and status != 404:
                raise self._reader.refused(status, source.text, where) from error
            words = f"{source.text} is not at {where}, or is private and the agent has no token for it ({status})"
            raise FetchFailed(words, hint="Correct `source`, or set HF_TOKEN for the agent", final=True) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            raise self._reader.refused(status, source.text, where) from error
        except Exception as error:
            # Its transport is a choice of the library, and so are the exceptions of it.
            name = type(error).__name__
            raise FetchFailed(f"{source.text}: {where}: {name}: {without_login(str(error))[:200]}") from error
        try:
            files = tuple(
                _remote(each.rfilename, each.size, getattr(each.lfs, "sha256", None), each.blob_id)
                for each in found.siblings or ()
            )
            return Listing(_text(found.sha), files)
        except TypeError as error:
            raise FetchFailed(f"{source.text}: {where} lists its files in a form not known here", final=True) from error

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        revision = quote(listing.revision or self._source.revision or "main", safe="")
        url = f"{self._endpoint}/{self._source.name}/resolve/{revision}/{quote(file.path)}"
        headers = self._build_headers(token=self._token)
        with self._reader.body(url, headers, f"{self._source.text} {file.path}", offset) as body:
            yield body


class ModelScopePlace:
    """ModelScope's HTTP API: `MODELSCOPE_ENDPOINT`, and `MODELSCOPE_API_TOKEN` for private models."""

    def __init__(self, source: ModelSource, policy: LocalPolicy, env: Mapping[str, str]) -> None:
        self._source = source
        self._endpoint = (env.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")
        self._revision = source.revision or "master"
        token = env.get("MODELSCOPE_API_TOKEN")
        self._reader = HttpReader(policy, self._endpoint)
        self._headers = {"authorization": f"Bearer {token}"} if token and self._reader.sends_token else {}

    def close(self) -> None:
        self._reader.close()

    def _url(self, tail: str) -> str:
        return f"{self._endpoint}/api/v1/models/{quote(self._source.name)}/{tail}"

    def listing(self) -> Listing:
        query = f"repo/files?Revision={quote(self._revision, safe='')}&Recursive=true"
        answer = self._reader.json(self._url(query), self._headers, self._source.text)
        try:
            if answer.get("Code") != 200:
                code = int(answer.get("Code") or _NO_SUCH_MODEL)
                status = 404 if code == _NO_SUCH_MODEL else code
                raise refused(status, self._source.text, host_of(self._endpoint))
            rows = answer["Data"]["Files"]
            files = tuple(
                _remote(row["Path"], int(row["Size"]), row.get("Sha256") or None, row.get("Revision"))
                for row in rows
                if row.get("Type") != "tree"
            )
            latest = _text((answer["Data"].get("LatestCommitter") or {}).get("Revision")) or self._revision
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            words = f"{self._source.text}: {host_of(self._endpoint)} lists its files in a form not known here"
            raise FetchFailed(words, final=True) from error
        return Listing(latest, files)

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        del listing  # its files are addressed by branch; their digests say whether they are the listed ones
        url = self._url(f"repo?Revision={quote(self._revision, safe='')}&FilePath={quote(file.path, safe='')}")
        with self._reader.body(url, self._headers, f"{self._source.text} {file.path}", offset) as body:
            yield body


class FolderPlace:
    """A folder of this node, or mounted there (NFS): copied. Symlinks within it are followed, as caches of hubs use them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        """Nothing is held open."""

    def listing(self) -> Listing:
        folder = self._folder
        if not folder.is_dir():
            raise FetchFailed(f"{folder} is no folder on this node", hint="Mount it, or correct `source`", final=True)
        files = []
        for here, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(here, name)
                try:
                    found = path.stat()
                except OSError:
                    continue  # a link that leads nowhere is no file of the model
                if stat.S_ISREG(found.st_mode):
                    mark = f"{found.st_ino}-{found.st_mtime_ns}"
                    files.append(RemoteFile(str(path.relative_to(folder)), found.st_size, None, mark))
        return Listing(None, tuple(files))

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        del listing
        path = self._folder / file.path
        try:
            with path.open("rb") as handle:
                handle.seek(offset)
                yield Part(offset, iter(lambda: handle.read(CHUNK), b""))
        except OSError as error:
            raise FetchFailed(f"{path}: {error.strerror}", hint="Look at the mount") from error


def _raise(error: OSError) -> None:
    raise FetchFailed(f"{error.filename}: {error.strerror}", hint="Look at the mount, and who may read it")
