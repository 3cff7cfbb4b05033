"""Signed placements: why a writable store is not command over a machine.

The control plane signs each placement for one node (Ed25519). The agent obeys a placement only when

- it knows the key that signed it (several may be valid at once, so keys rotate without a gap),
- the signature is right for exactly these bytes; nothing is re-serialised, and what is signed begins with a
  domain line, so that no other thing signed by that key can ever pass for a placement,
- it was made for this node and, when the caller says under which replica it was stored, for that replica,
- it is not older than what was already obeyed: (epoch, revision) only rises. The agent keeps that pair on disk.

Placements are state and do not expire: the same one may be read again any number of times.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nebula_core.errors import SettingsError, SignatureRefused
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.security.keyfile import load_key, save_key

DOMAIN = b"nebula placement v1\n"
#: A placement carries one spec; more than this is an attack on the parser.
MAX_PAYLOAD_BYTES = 1 << 20
#: Public halves of former signing keys, one base64 line each, in a file beside the present one.
RETIRED_KEYS = "retired.keys"


def key_id_of(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


class SigningKey:
    """The control plane's private key. Never leaves that host; agents and proxies hold only `public`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        #: The raw 32 bytes of the public key.
        self.public = private.public_key().public_bytes_raw()
        self.public_base64 = base64.b64encode(self.public).decode()
        self.key_id = key_id_of(self.public)

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Raises SettingsError when the file is missing, open to others, or no Ed25519 key."""
        return cls(load_key(path, Ed25519PrivateKey))  # type: ignore[type-abstract] # only asked by isinstance

    def save(self, path: Path) -> None:
        save_key(path, self._private)

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)


def verify_lines(lines: Iterable[str]) -> tuple[bytes, ...]:
    """The raw public keys of base64 lines, as `VerifyKeys.from_base64` reads them. Raises SettingsError."""
    found: list[bytes] = []
    for line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 32:
            raise SettingsError(
                f"{text[:20]!r} is not a public key (32 bytes in base64)",
                hint="Copy the line that `nebula-proxy init` printed",
            )
        found.append(raw)
    return tuple(found)


class VerifyKeys:
    """The public keys whose placements are obeyed, by key id."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = {key_id_of(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in keys}

    @classmethod
    def from_base64(cls, lines: Iterable[str]) -> "VerifyKeys":
        """One base64 public key per line; empty lines and `#` comments are skipped. Raises SettingsError."""
        return cls(verify_lines(lines))

    @classmethod
    def load(cls, path: Path) -> "VerifyKeys":
        """From a file of base64 lines, or from all `*.pub` files of a directory. Raises SettingsError."""
        files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
        lines: list[str] = []
        for file in files:
            try:
                lines.extend(file.read_text(encoding="ascii").splitlines())
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"cannot read the verify keys in {file}: {error}",
                    hint="Name the file with the public keys that `nebula-proxy init` wrote",
                ) from error
        return cls.from_base64(lines)

    @property
    def key_ids(self) -> frozenset[str]:
        return frozenset(self._keys)

    def verify(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Whether a key of this id is known and signed exactly this message."""
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def sign_placement(key: SigningKey, placement: Placement) -> SignedPlacement:
    payload = placement.to_json()
    signature = key.sign(DOMAIN + payload.encode())
    return SignedPlacement(payload=payload, key_id=key.key_id, signature=base64.b64encode(signature).decode())


def signed_anew(
    key: SigningKey, trusted: VerifyKeys, signed: SignedPlacement, replica: str
) -> tuple[Placement, SignedPlacement]:
    """What it says, and the same bytes signed by `key`: `signed` itself when they are already.

    Raises SignatureRefused when none of the `trusted` keys has signed them, or not for this replica: what somebody else
    has put into the store is never signed for them.
    """
    payload = verified_payload(trusted, signed, DOMAIN, "placement")
    try:
        placement = Placement.from_json(payload)
    except ValueError as error:
        raise SignatureRefused("the placement is signed but cannot be read", hint="Update the control plane") from error
    if placement.replica != replica:
        raise SignatureRefused(f"the placement of {placement.replica!r} was stored as {replica!r}")
    if signed.key_id == key.key_id:
        return placement, signed
    signature = base64.b64encode(key.sign(DOMAIN + payload)).decode()
    return placement, SignedPlacement(payload=signed.payload, key_id=key.key_id, signature=signature)


class Signed(Protocol):
    """A payload with the signature over its bytes."""

    @property
    def payload(self) -> str: ...

    @property
    def key_id(self) -> str: ...

    @property
    def signature(self) -> str: ...


def verified_payload(keys: VerifyKeys, signed: Signed, domain: bytes, what: str) -> bytes:
    """The bytes, once a known key is seen to have signed exactly them under this domain. Raises SignatureRefused."""
    if signed.key_id not in keys.key_ids:
        raise SignatureRefused(
            f"signed by unknown key {signed.key_id[:16]!r}",
            hint="Add the control plane's public key to verify_keys if it was rotated",
        )
    try:
        payload = signed.payload.encode()
        signature = base64.b64decode(signed.signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureRefused("the signature is malformed") from error
    # One form only: base64 with stray bits in its padding decodes to the same bytes.
    if base64.b64encode(signature).decode() != signed.signature or len(payload) > MAX_PAYLOAD_BYTES:
        raise SignatureRefused("the signature is malformed")
    if not keys.verify(signed.key_id, signature, domain + payload):
        raise SignatureRefused(f"the signature does not belong to this {what}")
    return payload


def verify_placement(
    keys: VerifyKeys,
    signed: SignedPlacement,
    *,
    node: str,
    not_before: tuple[int, int] = (0, 0),
    replica: str | None = None,
) -> Placement:
    """The placement, once it may be obeyed on `node`; `not_before` is the (epoch, revision) already obeyed.

    Raises SignatureRefused with the reason. Nothing of the payload is read before its signature was right.
    """
    payload = verified_payload(keys, signed, DOMAIN, "placement")
    try:
        placement = Placement.from_json(payload)
    except ValueError as error:
        raise SignatureRefused(
            "the placement is signed but cannot be read", hint="Agent and control plane differ in version: update"
        ) from error
    if placement.node != node:
        raise SignatureRefused(f"the placement was made for node {placement.node!r}, not {node!r}")
    if replica is not None and placement.replica != replica:
        raise SignatureRefused(f"the placement of {placement.replica!r} was stored as {replica!r}")
    if placement.order < not_before:
        raise SignatureRefused(
            f"epoch {placement.epoch}, revision {placement.revision} is older than {not_before[0]}, {not_before[1]}"
        )
    return placement
