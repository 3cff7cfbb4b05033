"""API keys: `nbl_<id>_<secret>` for the caller, a hash of the secret for us.

The id finds the record, the secret has 32 random bytes, so one SHA-256 is enough (2 µs, where a password hash would
cost 60 ms per request). A wrong id and a wrong secret take the same path: a dummy is compared, the answer is None.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from nebula_core.records.access import ApiKey, KeyLimits, Principal, Role

PREFIX = "nbl"
_TOKEN = re.compile(r"nbl_([a-z0-9]{4,32})_([A-Za-z0-9_-]{16,128})", re.ASCII)
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest().encode()


#: A key without any limit of its own.
NO_KEY_LIMITS = KeyLimits()


def mint_key(
    name: str,
    role: Role,
    *,
    now: float,
    created_by: str,
    models: tuple[str, ...] | None = None,
    expires_at: float | None = None,
    limits: KeyLimits = NO_KEY_LIMITS,
) -> tuple[str, ApiKey]:
    """A new token, to be shown once, and the record to keep. `now` and `expires_at` are Unix seconds."""
    key_id = secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    record = ApiKey(
        id=key_id,
        name=name,
        role=role,
        secret_sha256=_hash(secret).decode(),
        models=models,
        created_at=now,
        created_by=created_by,
        expires_at=expires_at,
        **dict(limits),
    )
    return f"{PREFIX}_{key_id}_{secret}", record


def parse_token(token: str) -> tuple[str, str] | None:
    """(id, secret) of a well-formed token."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else (found[1], found[2])


def check_token(token: str, keys: Mapping[str, ApiKey], now: float) -> Principal | None:
    """Who calls, or None for a token that is malformed, unknown, wrong, revoked or expired. Never raises."""
    parts = parse_token(token)
    key_id, secret = parts or ("", "")
    key = keys.get(key_id)
    kept = _NOBODY if key is None else key.secret_sha256.encode("utf-8", "replace")
    same = hmac.compare_digest(_hash(secret), kept)
    if key is None or parts is None or not same or key.id != key_id:
        return None
    if key.revoked or (key.expires_at is not None and now >= key.expires_at):
        return None
    return Principal(name=key.name, role=key.role, key_id=key.id, models=key.models)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).hexdigest().encode()
