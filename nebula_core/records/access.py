"""Who may do what: roles, and keys of which only a hash is kept."""

from enum import StrEnum

from pydantic import Field

from nebula_core.records.base import Record


class Role(StrEnum):
    """Ordered: each includes those before it. `client` may only use the data plane."""

    CLIENT = "client"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Role).index(self)

    def includes(self, other: "Role") -> bool:
        return self.rank >= other.rank


class KeyLimits(Record):
    """What a key may take of the data plane; None is no limit of its own."""

    #: Most requests open at once in each data-plane worker.
    max_inflight: int | None = Field(default=None, ge=1)
    #: Over all workers and proxies, refilled evenly: a bucket of so many, so many more each minute.
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000)
    #: Tokens of prompts and answers, likewise.
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000_000)
    #: Most streamed answers open at once, over all workers and proxies.
    max_streams: int | None = Field(default=None, ge=1, le=1_000_000)
    #: Highest `x-nebula-priority` it gets, whatever it asks for; None is what its role may: 10 from operator on, else 0.
    max_priority: int | None = Field(default=None, ge=-10, le=10)

    @property
    def is_shared(self) -> bool:
        """Whether a limit must be kept together with other workers."""
        return (
            self.requests_per_minute is not None or self.tokens_per_minute is not None or self.max_streams is not None
        )


class ApiKey(KeyLimits):
    """A credential `nbl_<id>_<secret>`; the secret has 32 random bytes, so a plain SHA-256 of it is enough to keep."""

    id: str
    name: str
    role: Role
    secret_sha256: str
    #: Models it may use on the data plane; None is all.
    models: tuple[str, ...] | None = None
    created_at: float
    created_by: str
    expires_at: float | None = None
    generation: int = 1
    revoked: bool = False


class Principal(Record):
    """Who makes this call, after its credential was checked."""

    name: str
    role: Role
    key_id: str
    models: tuple[str, ...] | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models
