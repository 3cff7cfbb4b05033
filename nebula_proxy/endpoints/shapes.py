"""What the data plane's own answers look like: the endpoints make them of these, and the description is made of these."""

import msgspec


class ModelCard(msgspec.Struct, kw_only=True):
    """One entry of `/v1/models`, in the fields of OpenAI and vLLM; the last three are Nebula's."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "nebula"
    root: str
    #: The deployment of an adapter.
    parent: str | None
    max_model_len: int | None
    #: Replicas that take requests, are on their way, and are wanted.
    ready: int
    starting: int
    wanted: int


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


class HealthAnswer(msgspec.Struct):
    """`ok` or `degraded`."""

    status: str
    engine_ready: bool
    proxy_healthy: bool


class AliveAnswer(msgspec.Struct):
    status: str = "ok"


class ReadyAnswer(msgspec.Struct):
    ready: bool
    #: Whether this proxy has heard of the cluster.
    table: bool
    store_reachable: bool
    draining: bool
    #: Since the store last answered, this process or the one with whose snapshot it began; null when it never did.
    snapshot_age_seconds: float | None = None
