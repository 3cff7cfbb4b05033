"""The `:` line: `nodes`, `models /qwen`, `scale demo=3`, `drain node-7`, `logs demo-r1`, `theme NAME`, `q`.

The same words as the shell's `nebula …`, so what is learned in one place works in the other. Parsing never fails with
an exception: what cannot be understood comes back as `Unknown` with the nearest word.
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from nebula_tui.presenters.plan import Action

#: Screen of each word; the first of a screen is its name.
SCREENS: Final = {
    "overview": "overview",
    "over": "overview",
    "nodes": "nodes",
    "node": "nodes",
    "gpus": "nodes",
    "models": "models",
    "model": "models",
    "deployments": "models",
    "replicas": "models",
    "engine": "engine",
    "requests": "requests",
    "top": "requests",
    "req": "requests",
    "logs": "logs",
    "log": "logs",
    "chat": "chat",
    "events": "events",
    "event": "events",
}


@dataclass(frozen=True, slots=True)
class Show:
    """Go to a screen, to a thing on it (`name`), with a filter."""

    screen: str
    name: str | None = None
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class Act:
    action: Action


@dataclass(frozen=True, slots=True)
class Why:
    """Explain a request."""

    request: str


@dataclass(frozen=True, slots=True)
class SetTheme:
    name: str


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class Help:
    pass


@dataclass(frozen=True, slots=True)
class Unknown:
    """`message` says what was wrong and what would be right."""

    message: str


Command = Show | Act | Why | SetTheme | Quit | Help | Unknown

VERBS: Final = ("scale", "drain", "cordon", "uncordon", "restart", "why", "cancel", "theme", "help", "q", "quit")


def parse(line: str, *, nodes: Collection[str], deployments: Collection[str], replicas: Collection[str]) -> Command:
    """Names decide what is meant: `drain X` drains a node or a replica, whichever X is."""
    words = line.strip().removeprefix(":").split()
    if not words:
        return Unknown("say what to do: `nodes`, `scale NAME=N`, `drain NODE`, `?` for help")
    verb, rest = words[0], words[1:]
    if verb in ("q", "quit", "q!"):
        return Quit()
    if verb in ("help", "?", "h"):
        return Help()
    if verb == "theme":
        return SetTheme(rest[0]) if rest else Unknown("say which: `theme NAME`, see ^P")
    if verb in ("why", "cancel"):
        if not rest:
            return Unknown(f"say which: `{verb} REQUEST`, as in x-request-id")
        return Why(rest[0]) if verb == "why" else Act(Action("cancel", "request", rest[0]))
    if verb in SCREENS:
        return _show(SCREENS[verb], rest)
    if verb == "scale":
        return _scale(rest, deployments)
    if verb in ("drain", "cordon", "uncordon", "restart"):
        return _act(verb, rest, nodes=nodes, deployments=deployments, replicas=replicas)
    return Unknown(f"no command {verb!r}{_nearest(verb, [*SCREENS, *VERBS])}")


def _show(screen: str, rest: list[str]) -> Command:
    name: str | None = None
    filter_: str | None = None
    for place, word in enumerate(rest):
        if word.startswith("/"):
            filter_ = " ".join([word[1:], *rest[place + 1 :]])
            break
        name = word
    return Show(screen, name, filter_)


def _scale(rest: list[str], deployments: Collection[str]) -> Command:
    words = [part for word in rest for part in word.split("=") if part and not word.startswith("--")]
    if len(words) == 1 and words[0] in deployments:
        return Act(Action("scale", "deployment", words[0]))
    if len(words) != 2 or not words[1].isdecimal():
        return Unknown("write it as `scale NAME=N`")
    name = words[0]
    if name not in deployments:
        return Unknown(f"no deployment {name!r}{_nearest(name, deployments)}")
    return Act(Action("scale", "deployment", name, int(words[1])))


def _act(
    verb: str,
    rest: list[str],
    *,
    nodes: Collection[str],
    deployments: Collection[str],
    replicas: Collection[str],
) -> Command:
    names = [word for word in rest if not word.startswith("--")]
    if not names:
        return Unknown(f"say what to {verb}: `{verb} NAME`")
    name = names[0]
    kinds = {"drain": ("node", "replica"), "restart": ("deployment", "replica")}.get(verb, ("node",))
    known = {"node": nodes, "deployment": deployments, "replica": replicas}
    for kind in kinds:
        if name in known[kind]:
            return Act(Action(verb, kind, name))
    candidates = [one for kind in kinds for one in known[kind]]
    return Unknown(f"no {' or '.join(kinds)} {name!r}{_nearest(name, candidates)}")


def _nearest(word: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def complete(
    line: str, *, nodes: Collection[str], deployments: Collection[str], replicas: Collection[str]
) -> str | None:
    """The line with its last word completed; None when nothing or more than one thing fits."""
    head, space, last = line.rpartition(" ")
    if not space:
        candidates: Collection[str] = [word for word in (*SCREENS, *VERBS) if len(word) > 2]
    else:
        candidates = {
            "scale": deployments,
            "drain": [*nodes, *replicas],
            "cordon": nodes,
            "uncordon": nodes,
            "restart": [*deployments, *replicas],
            "logs": replicas,
            "node": nodes,
            "nodes": nodes,
            "chat": [*deployments, *replicas],
            "model": deployments,
        }.get(head.split(" ")[0], ())
    fitting = sorted({word for word in candidates if word.startswith(last)})
    if not last or not fitting:
        return None
    common = fitting[0]
    for word in fitting[1:]:
        while not word.startswith(common):
            common = common[:-1]
    return f"{head}{space}{common}" if len(common) > len(last) or len(fitting) == 1 else None
