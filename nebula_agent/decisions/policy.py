"""The node's own word: what a placement may ask of this machine, whoever signed it.

A signature says who decided; the policy, a file that only root of this machine writes, says what may be decided at all.
Options that would take the engine out of the agent's hands (its port, its key) are refused without any policy, and so are
those that load code from elsewhere, unless the policy names them.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from ipaddress import ip_address
from posixpath import normpath
from urllib.parse import urlsplit

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.image_ref import ImageRef, is_digest, parse_image
from nebula_core.records.model_source import ModelSource, SourceKind, read_source
from nebula_core.records.placement import Placement

#: The agent sets these itself; a second value would break probing, keys or adoption.
RESERVED_ARGS = frozenset(
    {
        *("host", "port", "api-key", "api-key-file", "served-model-name", "alias", "model", "model-path", "config"),
        *("uds", "fd", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "root-path", "dev-mode", "metrics-port"),
        *(
            "admin-api-key",
            "disable-fastapi-docs",
            "api-server-count",
            "headless",
            "nnodes",
            "node-rank",
            "dist-init-addr",
            "devices",
            "master-node-addr",
            "model-id",
        ),
    }
)
#: They run code that somebody else chose.
CODE_ARGS = frozenset(
    {
        *("trust-remote-code", "middleware", "tool-parser-plugin", "reasoning-parser-plugin", "worker-cls"),
        *(
            "worker-extension-cls",
            "logits-processors",
            "custom-sigquit-handler",
            "scheduler-cls",
            "io-processor-plugin",
        ),
        *("logits-processor-pattern", "enable-custom-logit-processor", "model-loader-extra-config", "hf-overrides"),
    }
)


#: Where models are kept, when the policy says nothing of places.
USUAL_PLACES = ("/models", "/data", "/mnt", "/srv")


class LocalPolicy(Record):
    """Empty lists refuse everything of their kind; None allows all."""

    #: Absolute path prefixes (`/models`) and patterns of hub ids (`Qwen/*`, `modelscope:Qwen/*`, `s3:models/*`). None: any
    #: path and any id of the hub this node is set to; other places have to be listed.
    sources: tuple[str, ...] | None = None
    #: Hosts that models may be fetched from, as patterns (`*.hf.co`). None: those of the node's own settings, and where
    #: they redirect to.
    model_hosts: tuple[str, ...] | None = None
    #: Hosts, as patterns, that get the agent's token for a hub also over plain http. Loopback always does, others never.
    clear_token_hosts: tuple[str, ...] = ()
    #: Weights that run code when they are loaded (`.bin`, `.pt`) may be fetched where there are no safetensors.
    pickled_weights: bool = False
    #: Models whose configuration names code of their own may start without it (`auto_map`); with it only by `allowed_args`.
    auto_map: bool = False
    engines: tuple[str, ...] | None = None
    #: Options that load code and are allowed all the same.
    allowed_args: tuple[str, ...] = ()
    denied_args: tuple[str, ...] = ()
    #: Names of environment variables that are handed on to engines, beside the usual ones.
    environment: tuple[str, ...] = ()
    #: Kinds of engines that can take no key and may run all the same: only the network keeps strangers from their ports.
    keyless_engines: tuple[str, ...] = ()
    max_gpus: int | None = Field(default=None, ge=0)
    #: Where engines that somebody else runs may be reached: hosts, `host:port`, networks (`10.0.0.0/8`). Empty: nowhere.
    external: tuple[str, ...] = ()
    #: Files with the keys of such engines, by `host:port`.
    external_keys: dict[str, str] = Field(default_factory=dict)

    # Containers
    #: Images that may run: a registry (`ghcr.io`), `registry/repository` or a part of it before a slash, with `:tag` or
    #: `@sha256:…` to say more, or a bare `sha256:…`. None: those of this node's catalog.
    images: tuple[str, ...] | None = None
    #: Folders engines may read. None: the absolute paths of `sources`, else the usual places of models.
    mounts: tuple[str, ...] | None = None
    #: Linux capabilities that may be given back after all were taken, e.g. `SYS_NICE`, `IPC_LOCK`.
    capabilities: tuple[str, ...] = ()
    host_network: bool = False
    host_ipc: bool = False
    max_memory_bytes: int | None = Field(default=None, ge=1)
    max_pids: int | None = Field(default=None, ge=1)

    @property
    def mount_prefixes(self) -> tuple[str, ...]:
        if self.mounts is not None:
            return self.mounts
        if self.sources is not None:
            return tuple(source for source in self.sources if source.startswith("/"))
        return USUAL_PLACES


def why_refused(policy: LocalPolicy, placement: Placement) -> str | None:
    """Why this node does not do what the placement asks, with what to change; None: it may."""
    spec = placement.spec
    if policy.engines is not None and spec.engine not in policy.engines:
        return f"the policy of this node does not allow engine {spec.engine}; add it to `engines` there"
    if spec.engine not in {"simulated", "external"}:
        reason = _source_refused(policy, spec.engine, spec.source)
        if reason is not None:
            return reason
        for adapter in spec.adapters:
            reason = _source_refused(policy, spec.engine, adapter.source)
            if reason is not None:
                return f"adapter {adapter.name}: {reason}"
    if policy.max_gpus is not None and len(placement.gpus) > policy.max_gpus:
        return f"the policy of this node allows {policy.max_gpus} GPUs per replica, {len(placement.gpus)} are asked for"
    if spec.engine == "external":
        return None  # its address is judged when it is resolved, and its two args are no options of a program
    for name in spec.args:
        plain = name.replace("_", "-").lower()
        if plain in RESERVED_ARGS:
            return f"args.{name} is set by the agent; leave it out of the deployment"
        if plain in policy.denied_args or (plain in CODE_ARGS and plain not in policy.allowed_args):
            return f"args.{name} is not allowed on this node; add it to `allowed_args` of its policy if you trust it"
    return None


def why_source_refused(policy: LocalPolicy, source: ModelSource) -> str | None:
    """Why this node neither loads nor fetches a model from there; None: it may."""
    if source.kind in {SourceKind.PATH, SourceKind.COPY} and source.name.startswith("/"):
        return _path_refused(policy, source)
    if policy.sources is None:
        if source.kind in {SourceKind.MODELSCOPE, SourceKind.S3}:
            return (
                f"the policy of this node names no source {source.text!r}: models from {source.kind} are fetched only "
                "where `sources` lists them"
            )
        return None
    allowed = any(fnmatchcase(_plain(source), pattern) for pattern in policy.sources if not pattern.startswith("/"))
    return None if allowed else _refusal(source)


def is_host_allowed(policy: LocalPolicy, host: str) -> bool:
    """Whether models may be fetched from this host."""
    if policy.model_hosts is None:
        return True
    return any(fnmatchcase(host.lower(), pattern.lower()) for pattern in policy.model_hosts)


def may_have_token(policy: LocalPolicy, endpoint: str) -> bool:
    """Whether the token for a hub is sent to this endpoint: not where everybody on the way could read it."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        if parts.scheme == "https":
            return True
        if any(fnmatchcase(host, pattern.lower()) for pattern in policy.clear_token_hosts):
            return True
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # no address, or a name: where it leads is not known


def _path_refused(policy: LocalPolicy, source: ModelSource) -> str | None:
    if policy.sources is None:
        if source.kind is SourceKind.COPY and not _is_below(source.name, USUAL_PLACES):
            return f"{source.name} is copied only where `sources` of this node's policy lists it"
        return None
    prefixes = [prefix for prefix in policy.sources if prefix.startswith("/")]
    return None if _is_below(source.name, prefixes) else _refusal(source)


def _is_below(name: str, prefixes: Collection[str]) -> bool:
    path = normpath(name)
    return any(path == prefix.rstrip("/") or path.startswith(prefix.rstrip("/") + "/") for prefix in prefixes)


def _plain(source: ModelSource) -> str:
    """As policies write it: without revision, and with one spelling of each scheme."""
    if source.kind is SourceKind.HUB:
        return source.name
    return source.text if source.kind is SourceKind.PATH else f"{source.kind}:{source.name}"


def _refusal(source: ModelSource) -> str:
    return f"the policy of this node does not allow source {source.text!r}; add it to `sources` there"


def _source_refused(policy: LocalPolicy, engine: str, text: str) -> str | None:
    source = read_source(text, engine=engine)
    return source if isinstance(source, str) else why_source_refused(policy, source)


def why_image_refused(policy: LocalPolicy, image: ImageRef, repositories: Collection[str]) -> str | None:
    """Why an image may not run here; `repositories` are those of the catalog. Its digest counts when it is known."""
    if policy.images is None:
        if image.name in repositories:
            return None
        return f"image {image.short} is not of the catalog; list it in `images` of this node's policy"
    if any(_allows(entry, image) for entry in policy.images):
        return None
    return f"the policy of this node does not allow image {image.short}; add it to `images` there"


def _allows(entry: str, image: ImageRef) -> bool:
    if is_digest(entry):
        return image.digest == entry
    bare = entry.rstrip("/")
    if "/" not in bare and "@" not in bare and ("." in bare or ":" in bare or bare == "localhost"):
        # A registry: all of it.
        return image.registry == bare
    said = parse_image(bare)
    if said is None:
        return False
    if said.digest is not None:
        return image.name == said.name and image.digest == said.digest
    if ":" in bare.rpartition("/")[2]:
        return image.name == said.name and image.tag == said.tag
    # Without a tag it is a prefix, which ends at a slash.
    return image.name == said.name or image.name.startswith(f"{said.name}/")
