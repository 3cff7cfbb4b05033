"""An engine that somebody started by hand, as the agent of its node found it."""

from nebula_core.records.base import Record
from nebula_core.records.deployment import DeploymentSpec


class FoundEngine(Record):
    """What is known of an engine that nobody ordered. None of it is a secret: keys of a command line are left out."""

    #: What it lists at `/v1/models`, else what its command line says.
    served_models: tuple[str, ...] = ()
    #: How it would be started again, from its command line; None: that cannot be told.
    spec: DeploymentSpec | None = None
    #: Of its command line, by name, what `spec` cannot say.
    left_out: tuple[str, ...] = ()
    #: When its process began, in seconds since boot: with its pid, which process is meant.
    pid_born: float | None = None
    #: How its node reaches it; the port is that of its endpoint.
    probe_host: str | None = None
    #: The name Docker has for its container; None: it is in none, or in one of somebody else's Docker.
    container_name: str | None = None
    #: It answers only who shows a key.
    needs_key: bool = False
    #: The agent has that key: from its command line, or from the file that the policy names.
    has_key: bool = False
    #: Why it cannot be taken in as it stands, with what to do; None: it can.
    why_not: str | None = None
