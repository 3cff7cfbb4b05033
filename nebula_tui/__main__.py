"""`python -m nebula_tui`: the `nebula` command."""

from nebula_tui.cli.entry import main

main()
