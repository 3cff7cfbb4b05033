"""Secret files: written whole and private, refused when others may read them."""

import os
import secrets
import stat
from pathlib import Path

from nebula_core.errors import SettingsError


def write_secret(path: Path, data: bytes) -> None:
    """Writes `data` to `path` with mode 0600: readers see the old file or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name nobody can guess, opened with O_EXCL: no link planted there is ever followed.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def read_secret(path: Path) -> bytes:
    """The content of a secret file. Raises SettingsError when it is missing or open to other users."""
    try:
        # Not blocking: a pipe planted under this name must not hold the program.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise SettingsError(
            f"cannot read the secret file {path}: {error.strerror}",
            hint="Check the path and that this user owns the file",
        ) from error
    try:
        # Asked of the open file, not of the name: nobody can swap it in between.
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise SettingsError(f"the secret file {path} is not a plain file", hint="Name the file itself")
        if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(
                f"the secret file {path} may be read or written by other users (mode {stat.S_IMODE(facts.st_mode):04o})",
                hint=f"Run: chmod 600 {path}",
            )
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
