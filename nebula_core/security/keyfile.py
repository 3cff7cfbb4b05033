"""Private keys in files: PEM, mode 0600, refused when others may read them."""

from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nebula_core.errors import SettingsError
from nebula_core.security.files import read_secret, write_secret

_HINT = "Make one with `nebula-proxy init`"
Key = TypeVar("Key", Ed25519PrivateKey, X25519PrivateKey)


def load_key(path: Path, kind: type[Key]) -> Key:
    """Raises SettingsError when the file is missing, open to others, or holds no key of this kind."""
    try:
        private = serialization.load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} holds no private key", hint=_HINT) from error
    if not isinstance(private, kind):
        name = kind.__name__.removesuffix("PrivateKey")
        raise SettingsError(f"{path} is not an {name} key", hint=_HINT)
    return private


def save_key(path: Path, private: Ed25519PrivateKey | X25519PrivateKey) -> None:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_secret(path, private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
