"""The node's own word: what a placement may ask of this machine, whoever signed it.

A signature says who decided; the policy, a file that only root of this machine writes, says what may be decided at all.
Options that would take the engine out of the agent's hands (its port, its key) are refused without any policy, and so are
those that load code from elsewhere, unless the policy names them.
"""

from fnmatch import fnmatchcase
from posixpath import normpath

from pydantic import Field

from nebula_core.records.base import Record
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


class LocalPolicy(Record):
    """Empty lists refuse everything of their kind; None allows all."""

    #: Absolute path prefixes (`/models`) and patterns of hub ids (`Qwen/*`).
    sources: tuple[str, ...] | None = None
    engines: tuple[str, ...] | None = None
    #: Options that load code and are allowed all the same.
    allowed_args: tuple[str, ...] = ()
    denied_args: tuple[str, ...] = ()
    #: Names of environment variables that are handed on to engines, beside the usual ones.
    environment: tuple[str, ...] = ()
    max_gpus: int | None = Field(default=None, ge=0)


def why_refused(policy: LocalPolicy, placement: Placement) -> str | None:
    """Why this node does not do what the placement asks, with what to change; None: it may."""
    spec = placement.spec
    if policy.engines is not None and spec.engine not in policy.engines:
        return f"the policy of this node does not allow engine {spec.engine}; add it to `engines` there"
    if spec.engine not in {"simulated", "external"}:
        reason = _source_refused(policy, spec.source)
        if reason is not None:
            return reason
        for adapter in spec.adapters:
            reason = _source_refused(policy, adapter.source)
            if reason is not None:
                return f"adapter {adapter.name}: {reason}"
    if policy.max_gpus is not None and len(placement.gpus) > policy.max_gpus:
        return f"the policy of this node allows {policy.max_gpus} GPUs per replica, {len(placement.gpus)} are asked for"
    for name in spec.args:
        plain = name.replace("_", "-").lower()
        if plain in RESERVED_ARGS:
            return f"args.{name} is set by the agent; leave it out of the deployment"
        if plain in policy.denied_args or (plain in CODE_ARGS and plain not in policy.allowed_args):
            return f"args.{name} is not allowed on this node; add it to `allowed_args` of its policy if you trust it"
    return None


def _source_refused(policy: LocalPolicy, source: str) -> str | None:
    if policy.sources is None:
        return None
    if source.startswith("/"):
        path = normpath(source)
        allowed = any(
            path == prefix.rstrip("/") or path.startswith(prefix.rstrip("/") + "/")
            for prefix in policy.sources
            if prefix.startswith("/")
        )
    else:
        allowed = any(fnmatchcase(source, pattern) for pattern in policy.sources if not pattern.startswith("/"))
    return None if allowed else f"the policy of this node does not allow source {source!r}; add it to `sources` there"
