"""What the cluster is made of, what it should become, and how that is kept."""

__version__ = "0.1.0"
