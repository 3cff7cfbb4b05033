"""What the TUI writes to disk: exports, in the state folder of the user (XDG)."""

import time
from pathlib import Path


def save_text(kind: str, text: str, wall: float, *, suffix: str = "txt") -> Path:
    """Writes a new file `{state}/nebula/{kind}/{time}.{suffix}` for its owner only. Raises OSError."""
    from platformdirs import user_state_path

    folder = user_state_path("nebula") / kind
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(wall))
    path = folder / f"{stamp}.{suffix}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stamp}-{number}.{suffix}"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path
