"""`nebula-proxy init`: the keys of a cluster, each made once and kept; hashes of the API keys into the store.

keys/signing.key   Ed25519, signs placements: only the control process's host has it
keys/verify.keys   its public half, one base64 line per key: for every agent
keys/sealing.key   X25519, opens the keys of engines: for every proxy
keys/sealing.pub   its public half: for every agent
keys/admin.key     the first API key, role admin
keys/api.key       the first API key for clients

The signing key is changed in three steps, each of which may be repeated (`init --rotate prepare|switch|finish`):

- *prepare* makes `signing.next.key` and adds its public half to `verify.keys`: nodes must know it before anything is signed by it;
- *switch* makes it the signing key; of the former one only the public half is kept (`retired.keys`). The leader then signs all
  placements anew;
- *finish* takes the former keys out of `verify.keys`, once the store holds nothing that they have signed.
"""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nebula_core.errors import Conflict, SettingsError, SignatureRefused
from nebula_core.records.access import ApiKey, Role
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement
from nebula_core.security.credentials import mint_key, parse_token
from nebula_core.security.envelope import RETIRED_KEYS, SigningKey, VerifyKeys, signed_anew, verify_lines
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


def prepare_rotation(folder: Path) -> list[Installed]:
    """The next signing key, and its public half beside the present one."""
    following = folder / "signing.next.key"
    made = not following.exists()
    if made:
        SigningKey.generate().save(following)
    public = SigningKey.load(following).public_base64
    return [
        Installed(following, "will sign placements (Ed25519, private)", made),
        _public(
            folder / "verify.keys", public, "for agents: copy it to every node and restart its agent, then `switch`"
        ),
    ]


def switch_rotation(folder: Path) -> list[Installed]:
    """The next key signs from the next start of the control process on. Raises SettingsError when none was prepared."""
    signing, following, retired = folder / "signing.key", folder / "signing.next.key", folder / RETIRED_KEYS
    if not following.exists():
        raise SettingsError(f"there is no {following}", hint="Run `nebula-proxy init --rotate prepare` first")
    # First what is needed to recognise the old signatures: cut off here, the step is only repeated.
    kept = _public(retired, SigningKey.load(signing).public_base64, "recognises what the former keys have signed")
    following.replace(signing)
    return [
        kept,
        Installed(signing, "signs placements; now restart the control process (`nebula-proxy reload`)", made=True),
    ]


def finish_rotation(folder: Path, left: Mapping[str, str]) -> list[Installed]:
    """Nodes need the former keys no more. `left` are placements in the store that the present key has not signed, with why.

    Raises SettingsError while there are any.
    """
    if left:
        some = ", ".join(f"{replica} ({why})" for replica, why in sorted(left.items())[:5])
        raise SettingsError(
            f"{len(left)} placements in the store are not signed by the present key: {some}",
            hint="Let the control process run until its event says `signed anew`; look at those that are not ours",
        )
    verify, retired = folder / "verify.keys", folder / RETIRED_KEYS
    former = set(verify_lines(retired.read_text().splitlines())) if retired.exists() else set()
    # By the key and not by the line: a remark behind it must not keep it.
    lines = [line for line in verify.read_text().splitlines() if not former.intersection(verify_lines([line]))]
    write_secret(verify, "".join(f"{line}\n" for line in lines).encode())
    retired.unlink(missing_ok=True)
    return [Installed(verify, "for agents: copy it to every node and restart its agent", bool(former))]


async def not_signed_by(settings: StoreSettings, folder: Path) -> dict[str, str]:
    """Placements in the store that the signing key of this folder has not signed, with the reason."""
    key = SigningKey.load(folder / "signing.key")
    async with await connect(settings) as store:
        raw = await store.get_all(ChangeKind.PLACEMENT)
    left: dict[str, str] = {}
    for replica, value in raw.items():
        try:
            signed_anew(key, VerifyKeys([key.public]), SignedPlacement.from_json(value), replica)
        except (SignatureRefused, ValueError) as error:
            left[replica] = error.message if isinstance(error, SignatureRefused) else "it cannot be read"
    return left


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
