"""The scripts `nebula` and `nebula-tui`: `version` is answered before anything heavy is imported (GOALS S14)."""

import sys


def main() -> None:
    if sys.argv[1:] == ["version"]:
        from nebula_core import __version__

        sys.stdout.write(f"nebula {__version__}\n")
        return
    from nebula_tui.cli.main import run

    run(sys.argv[1:])


def tui_main() -> None:
    """`nebula-tui` is `nebula tui`."""
    from nebula_tui.cli.main import run

    run(["tui", *sys.argv[1:]])
