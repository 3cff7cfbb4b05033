"""`python -m nebula_proxy`: the same as the script `nebula-proxy`."""

from nebula_proxy.cli import main

if __name__ == "__main__":
    main()
