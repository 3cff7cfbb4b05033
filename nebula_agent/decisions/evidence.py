"""The evidence of a hang, as one text: what the engine's counters did, what it said last, and where its processes stand.

Gathered before the engine is killed, because afterwards nobody can tell why it hung. Bounded in every part, so that no log
storm fills the disk. Nothing of it is an environment or a command line: keys may stand there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nebula_core.security.text import clean_text

MOST_CHARACTERS = 512 * 1024
#: Per section.
_MOST_OF_ONE = 128 * 1024
#: Bundles kept for one replica, and on one node.
KEPT_PER_REPLICA = 5
KEPT_PER_NODE = 40


@dataclass(frozen=True, slots=True)
class Counted:
    """The engine's figures at one scrape; `at` is monotonic seconds."""

    at: float
    running: float | None
    waiting: float | None
    kv_cache_usage: float | None
    marks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the engine."""

    pid: int
    name: str
    #: One letter, as /proc gives it: `D` waits in the kernel and cannot be killed.
    state: str
    #: Where in the kernel it waits, its kernel stack, its Python stacks: "" where this user may not see it.
    waits_in: str = ""
    facts: str = ""
    kernel_stack: str = ""
    python_stacks: str = ""


def counters_table(counted: Sequence[Counted], now: float) -> str:
    """One line per scrape: age, running, waiting, KV cache, and what counts as progress."""
    # Progress: prompt tokens, generated tokens, finished requests, steps, as far as the engine has them.
    lines = [" age   running  waiting     kv  progress (prompt tokens, tokens, finished, steps)"]
    for each in counted:
        kv = "–" if each.kv_cache_usage is None else f"{each.kv_cache_usage:.3f}"
        marks = "  ".join(f"{mark:.0f}" for mark in each.marks)
        lines.append(f"{now - each.at:4.0f}s  {_whole(each.running):>7}  {_whole(each.waiting):>7}  {kv:>5}  {marks}")
    return "\n".join(lines)


def processes_text(processes: Iterable[ProcessState]) -> str:
    parts = []
    for each in processes:
        waits = f" waits in {each.waits_in}" if each.waits_in not in {"", "0"} else ""
        parts.append(f"pid {each.pid} {each.name} state {each.state}{waits}")
        for title, text in (
            ("status", each.facts),
            ("kernel stack", each.kernel_stack),
            ("python stacks", each.python_stacks),
        ):
            if text:
                parts.append(f"  {title}:\n" + "\n".join(f"    {line}" for line in text.splitlines()))
    return "\n".join(parts)


def bundle(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole text, clean for a terminal. What is too long is cut in the middle, and says so."""
    parts = [title]
    for name, text in sections:
        shown = text.strip("\n") or "(nothing)"
        parts.append(f"\n== {name}\n{_cut(shown, _MOST_OF_ONE)}")
    lines = "\n".join(parts).splitlines()
    return _cut("\n".join(clean_text(line, max_length=4000) for line in lines), MOST_CHARACTERS) + "\n"


def file_name(replica: str, unix_seconds: float, engine_epoch: str) -> str:
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return f"{replica}@{moment:%Y%m%dT%H%M%SZ}-{engine_epoch}.txt"


def superfluous(names: Iterable[str], replica: str) -> list[str]:
    """Which of the bundles on the disk are too many, oldest first; all of them are named by `file_name`."""
    by_age = sorted(names, key=lambda name: name.rpartition("@")[2])
    own = [name for name in by_age if name.rpartition("@")[0] == replica]
    gone = own[: max(0, len(own) - KEPT_PER_REPLICA)]
    rest = [name for name in by_age if name not in gone]
    return gone + rest[: max(0, len(rest) - KEPT_PER_NODE)]


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
