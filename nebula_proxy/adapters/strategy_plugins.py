"""Routing strategies of other packages: entry points of the group `nebula.routing_strategies`, one function each.

A package that is broken must not keep a proxy from serving: it is named with what is wrong, and left out.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from types import MappingProxyType
from typing import NamedTuple

from nebula_proxy.decisions.strategies import BUILT_IN, Strategy
from nebula_proxy.decisions.wishes import is_name

GROUP = "nebula.routing_strategies"


class Strategies(NamedTuple):
    #: The built-in ones and those of plug-ins.
    by_name: Mapping[str, Strategy]
    #: Name and origin of each plug-in that is used, and what is wrong with each that is not.
    found: dict[str, str]
    broken: dict[str, str]


def load_strategies() -> Strategies:
    """Everything that is installed beside Nebula. Imports what it finds; never raises for it."""
    strategies: dict[str, Strategy] = dict(BUILT_IN)
    found: dict[str, str] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        problem = _load(point, strategies)
        if problem is None:
            found[point.name] = point.value
        else:
            broken[f"{point.name} ({point.value})"] = problem
    # The very table of the built-in ones where there is nothing else: decisions tell by it that all are trusted.
    return Strategies(MappingProxyType(strategies) if found else BUILT_IN, found, broken)


def _load(point: EntryPoint, strategies: dict[str, Strategy]) -> str | None:
    if not is_name(point.name):
        return "its name may hold letters, digits, `.`, `_` and `-` only: it is sent in a header"
    if point.name in strategies:
        return "there is one of that name already; rename it"
    try:
        function = point.load()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"it cannot be imported: {type(error).__name__}: {error}"
    if not callable(function):
        return f"it is no function but a {type(function).__name__}"
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = None
    if parameters is not None and not _takes_two(list(parameters)):
        return "it must take (ask, weighed)"
    strategies[point.name] = function
    return None


def _takes_two(parameters: list[Parameter]) -> bool:
    positional = [
        each for each in parameters if each.kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
    ]
    needed = [each for each in positional if each.default is Parameter.empty]
    more = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
    named = [each for each in parameters if each.kind is Parameter.KEYWORD_ONLY and each.default is Parameter.empty]
    return len(needed) <= 2 and (len(positional) >= 2 or more) and not named
