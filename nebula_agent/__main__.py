"""`python -m nebula_agent`: the node agent."""

import sys

from nebula_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
