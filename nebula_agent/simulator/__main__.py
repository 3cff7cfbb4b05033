"""`python -m nebula_agent.simulator`: one simulated engine."""

import sys

from nebula_agent.simulator.process import main

if __name__ == "__main__":
    sys.exit(main())
