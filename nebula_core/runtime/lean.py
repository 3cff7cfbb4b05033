"""Imports without what a library takes along in case somebody wants it: memory of every process, each day of the year."""

import importlib
import sys
from typing import Any


def import_without(module: str, unwanted: str) -> None:
    """Imports a module as if an optional companion were not installed; a module that is there already stays as it is.

    structlog imports rich, and rich Pygments, for a console that a service never has: 3 MB.
    """
    if module in sys.modules or unwanted in sys.modules:
        return
    modules: dict[str, Any] = sys.modules
    modules[unwanted] = None  # the import system's own word for "not to be had"
    try:
        importlib.import_module(module)
    finally:
        del modules[unwanted]
