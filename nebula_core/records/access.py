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


class ApiKey(Record):
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
    #: Most requests of this key open at once per proxy; None is no limit of its own.
    max_inflight: int | None = Field(default=None, ge=1)


class Principal(Record):
    """Who makes this call, after its credential was checked."""

    name: str
    role: Role
    key_id: str
    models: tuple[str, ...] | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models
