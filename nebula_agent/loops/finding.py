"""One line of `nebula-agent check`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    verdict: Literal["ok", "warn", "FAIL"]
    detail: str
    hint: str | None = None
