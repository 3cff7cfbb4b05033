"""`nebula-proxy init`: the keys of a cluster, each made once and kept; hashes of the API keys into the store.

keys/signing.key   Ed25519, signs placements: only the control process's host has it
keys/verify.keys   its public half, one base64 line per key: for every agent
keys/sealing.key   X25519, opens the keys of engines: for every proxy
keys/sealing.pub   its public half: for every agent
keys/admin.key     the first API key, role admin
keys/api.key       the first API key for clients
"""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

from nebula_core.errors import Conflict, SettingsError
from nebula_core.records.access import ApiKey, Role
from nebula_core.records.event import ChangeKind
from nebula_core.security.credentials import mint_key, parse_token
from nebula_core.security.envelope import SigningKey
from nebula_core.security.files import read_secret, write_secret
from nebula_core.security.sealing import SealingKeyPair
from nebula_core.store.connection import StoreSettings, connect

CREATED_BY = "nebula-proxy init"
#: File, name and role of the first API keys.
FIRST_KEYS = (("admin.key", "admin", Role.ADMIN), ("api.key", "default", Role.CLIENT))


class Installed(NamedTuple):
    """A file of the installation."""

    path: Path
    what: str
    made: bool


def install(data: Path) -> tuple[list[Installed], list[ApiKey]]:
    """Makes what is missing in `data`/keys; returns what there is, and the records of the API keys."""
    folder = data / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found: list[Installed] = []

    signing = folder / "signing.key"
    made = not signing.exists()
    if made:
        SigningKey.generate().save(signing)
    found.append(Installed(signing, "signs placements (Ed25519, private)", made))
    found.append(_public(folder / "verify.keys", SigningKey.load(signing).public_base64, "for agents: verifies them"))

    sealing = folder / "sealing.key"
    made = not sealing.exists()
    if made:
        SealingKeyPair.generate().save(sealing)
    found.append(Installed(sealing, "opens the keys of engines (X25519, private)", made))
    found.append(_public(folder / "sealing.pub", SealingKeyPair.load(sealing).public_base64, "for agents: seals them"))

    records = []
    for file, name, role in FIRST_KEYS:
        path = folder / file
        made = not path.exists()
        if made:
            token, record = mint_key(name, role, now=time.time(), created_by=CREATED_BY)
            write_secret(path, token.encode() + b"\n")
        else:
            record = _record(path, name, role)
        records.append(record)
        found.append(Installed(path, f"API key {name!r}, role {role}", made))
    return found, records


async def store_keys(settings: StoreSettings, records: list[ApiKey]) -> list[str]:
    """Writes the hashes of keys the store does not know; a key that was changed or revoked there stays so.

    Returns the ids that were written. Raises StoreUnavailable or StoreUnfit.
    """
    written = []
    async with await connect(settings) as store:
        await store.check()
        await store.ensure_meta()
        for record in records:
            try:
                await store.put(ChangeKind.KEY, record.id, record, expected_generation=0)
            except Conflict:
                continue
            written.append(record.id)
    return written


def _public(path: Path, line: str, what: str) -> Installed:
    """A file with a public key; other lines in it (a second key during a rotation) stay."""
    lines = path.read_text().splitlines() if path.exists() else []
    if line in lines:
        return Installed(path, what, made=False)
    write_secret(path, "".join(f"{each}\n" for each in [*lines, line]).encode())
    return Installed(path, what, made=True)


def _record(path: Path, name: str, role: Role) -> ApiKey:
    parts = parse_token(read_secret(path).decode("utf-8", "replace").strip())
    if parts is None:
        raise SettingsError(f"{path} holds no API key", hint="Remove the file and run `nebula-proxy init` again")
    key_id, secret = parts
    return ApiKey(
        id=key_id,
        name=name,
        role=role,
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=path.stat().st_mtime,
        created_by=CREATED_BY,
    )
