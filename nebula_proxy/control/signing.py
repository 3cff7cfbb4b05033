"""The keys of the control process: the one it signs with, and those whose signatures it recognises as its own.

After a change of the key (`nebula-proxy init --rotate`) the former ones are known by their public half alone, in
`retired.keys` beside the signing key: what they signed is signed anew, what nobody of them signed is not.
"""

from pathlib import Path

from nebula_core.errors import SettingsError
from nebula_core.security.envelope import RETIRED_KEYS, SigningKey, VerifyKeys, verify_lines
from nebula_proxy.settings import ProxySettings


class SigningKeys:
    def __init__(self, current: SigningKey, retired: tuple[bytes, ...] = ()) -> None:
        self.current = current
        #: Recognises what this control plane has signed, now and before.
        self.trusted = VerifyKeys((current.public, *retired))

    @classmethod
    def load(cls, settings: ProxySettings) -> "SigningKeys":
        """Raises SettingsError when there is no key, or a file of keys cannot be used."""
        path = settings.control.signing_key_file
        if path is None and settings.data_dir is not None:
            path = settings.data_dir / "keys" / "signing.key"
        if path is None:
            raise SettingsError(
                "the control process has no key to sign placements with",
                hint="`nebula-proxy init --data DIR` makes one; name it in control.signing_key_file",
            )
        return cls(SigningKey.load(path), retired_keys(path.with_name(RETIRED_KEYS)))


def retired_keys(path: Path) -> tuple[bytes, ...]:
    """The public keys in the file; none when there is none. Raises SettingsError."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {path}: {error}", hint="It holds the public halves of former signing keys, one a line"
        ) from error
    return verify_lines(lines)
