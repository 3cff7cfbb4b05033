"""`python -m nebula_tui`: the `nebula` command."""

from nebula_tui.cli.main import main

main()
