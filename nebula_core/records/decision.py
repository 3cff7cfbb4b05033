"""What became of one request, and why: the decision record that `why` explains.

Written by proxies for a sample of their requests and for everything out of the ordinary, read by people. It never
holds a word of a prompt or of an answer. Times within a request are seconds since it arrived; unknown is None.
"""

from nebula_core.records.base import Record

#: Candidates kept per attempt, the best first: enough to see why one won, little enough to keep thousands.
CANDIDATES_KEPT = 16


class CandidateRecord(Record):
    """One replica as it was weighed; the figures are those the decision was made with."""

    replica: str
    #: `sound`, `probe`, `suspect`, `struggling`, `silent` or `out`; see `nebula_proxy.decisions.candidates`.
    standing: str = "sound"
    #: By the strategy of the attempt, lower is better; None when it was not worth a score.
    score: float | None = None
    #: Open requests of the proxy itself, and of the others as they last said.
    inflight: int = 0
    elsewhere: int = 0
    waiting: int | None = None
    kv_cache_usage: float | None = None
    #: Age of the engine's figures at that moment.
    sample_age_seconds: float | None = None
    #: 0 is idle, 1 is full.
    saturation: float | None = None
    #: Share of the prompt found in the prefix index, 0..1; None where the strategy does not look.
    prefix_ratio: float | None = None
    chosen: bool = False
    #: Why it was not taken, in a few words; None for the one that was.
    lost_because: str | None = None


class AttemptRecord(Record):
    """One try: which replica, chosen from which, and what came of it."""

    #: None when no replica could be picked.
    replica: str | None = None
    strategy: str | None = None
    #: One word, as in `nebula_proxy_route_total`.
    reason: str | None = None
    #: What overruled the strategy's own order, e.g. that the loads had drifted too far apart.
    guard: str | None = None
    #: When it was picked.
    at_seconds: float = 0.0
    candidates: tuple[CandidateRecord, ...] = ()
    #: How many there were; more than are listed when only the best were kept.
    candidates_total: int = 0
    #: When the engine began to answer.
    first_byte_seconds: float | None = None
    #: What went wrong (`refused`, `lost`, `busy` …), None when it was served to the end or is open still.
    trouble: str | None = None
    detail: str | None = None
    #: It went on with a stream that another replica had begun.
    resumed: bool = False


class DecisionRecord(Record):
    """One request from its arrival to its end."""

    id: str
    proxy: str
    #: Unix seconds of its arrival at the proxy, for display.
    at: float
    path: str
    model: str | None = None
    #: The caller's key: its id and its name, never the key.
    key_id: str | None = None
    key_name: str | None = None
    stream: bool | None = None
    #: `open` while it runs; then what the request log calls it: `ok`, `engine_error`, `broken`, `client_gone`, a refusal's code.
    outcome: str = "open"
    #: What the client was answered; None while it is open.
    status: int | None = None
    detail: str | None = None
    #: Why this record was kept: `sample`, `floor`, `error`, `rejected`, `retried`, `resumed`, `slow`, `person`, `asked`.
    kept_because: str = "sample"
    #: `admit`, `wait` or `reject`, and the reason; None when it did not come that far.
    admission: str | None = None
    admission_reason: str | None = None
    #: Spent in the proxy's waiting room.
    wait_seconds: float | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    resumes: int = 0
    ttft_seconds: float | None = None
    #: Mean time per token after the first.
    tpot_seconds: float | None = None
    overhead_seconds: float | None = None
    duration_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    trace_id: str | None = None
    #: The id the store gave; set by readers.
    entry: str | None = None

    @property
    def replica(self) -> str | None:
        """Where it ran last."""
        return next((attempt.replica for attempt in reversed(self.attempts) if attempt.replica is not None), None)
