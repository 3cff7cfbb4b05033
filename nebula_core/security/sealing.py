"""Sealed values: written to the store by an agent, readable only by the proxies.

Each start of an engine has a key of its own; the agent must hand it to the proxies through the store, where a reader
may sit. A sealed box: a fresh X25519 pair per value, HKDF-SHA-256 over the shared secret, ChaCha20-Poly1305 with the
caller's context as associated data, so that a box copied to another replica or another start does not open there.
The key is used for one message only, so the nonce may be constant.
"""

import base64
import binascii
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nebula_core.errors import SignatureRefused
from nebula_core.security.keyfile import load_key, save_key

_DOMAIN = b"nebula seal v1\n"
_NONCE = bytes(12)
_PUBLIC_BYTES = 32


class SealingKeyPair:
    """The proxies' pair. Agents get `public` in their settings."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.public_base64 = base64.b64encode(self.public).decode()

    @classmethod
    def generate(cls) -> "SealingKeyPair":
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SealingKeyPair":
        """Raises SettingsError when the file is missing, open to others, or no X25519 key."""
        return cls(load_key(path, X25519PrivateKey))  # type: ignore[type-abstract] # only asked by isinstance

    def save(self, path: Path) -> None:
        save_key(path, self._private)

    def seed(self, purpose: bytes) -> int:
        """64 bits that only the owners of the pair know, another number for each purpose (at most 16 bytes); never 0."""
        digest = hashlib.blake2b(self._private.private_bytes_raw(), digest_size=8, person=purpose).digest()
        return int.from_bytes(digest, "big") or 1

    def agree(self, other: bytes) -> bytes:
        """The secret shared with the owner of public key `other`. Raises ValueError for a degenerate one."""
        return self._private.exchange(X25519PublicKey.from_public_bytes(other))


def seal(public: bytes, plaintext: bytes, *, context: bytes) -> str:
    """Base64 of a box that only the owner of `public` opens, and only with the same `context`."""
    once = SealingKeyPair.generate()
    cipher = _cipher(once.agree(public), once.public, public)
    return base64.b64encode(once.public + cipher.encrypt(_NONCE, plaintext, context)).decode()


def unseal(pair: SealingKeyPair, sealed: str, *, context: bytes) -> bytes:
    """What was sealed. Raises SignatureRefused when it was made for another key, another context, or was altered."""
    try:
        raw = base64.b64decode(sealed, validate=True)
        sender, box = raw[:_PUBLIC_BYTES], raw[_PUBLIC_BYTES:]
        return _cipher(pair.agree(sender), sender, pair.public).decrypt(_NONCE, box, context)
    except (InvalidTag, ValueError, binascii.Error) as error:
        raise SignatureRefused(
            "a sealed value does not open here", hint="Give the agent the sealing public key of these proxies"
        ) from error


def _cipher(shared: bytes, sender: bytes, receiver: bytes) -> ChaCha20Poly1305:
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_DOMAIN + sender + receiver)
    return ChaCha20Poly1305(kdf.derive(shared))
