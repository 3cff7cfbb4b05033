"""What the TUI must be told to start: where the cluster is, with which key, and how it should look."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TuiSettings:
    """`control_url` is the Control API's address without `/api/v1`; the key travels in a header only."""

    control_url: str
    api_key: str | None
    openai_base_url: str | None = None
    """The data plane for chat, `http://…/v1`; None asks the Control API."""
    context: str = "local"
    """Name shown at the top left."""
    theme: str | None = None
    ca_file: str | None = None
    mouse: bool = True
