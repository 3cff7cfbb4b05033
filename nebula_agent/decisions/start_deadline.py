"""How long an engine may take to become ready: longer for a large model, and longer while its log shows that it works.

Fixed limits mark slow loaders as failed for ever (llama-swap#276, #289). The deployment's limit is for everything but
reading the weights; for those the slowest disk that is worth serving from is assumed.
"""

from math import ceil

#: Bytes a second: a spinning disk or a busy NFS server.
SLOW_DISK_BYTES_PER_SECOND = 150e6
#: A log that grew within this time shows that it works on.
QUIET_SECONDS = 60.0
#: But no longer than this many times the limit, whatever it logs.
MOST_TIMES = 2.0


def start_deadline(said_seconds: float, weights_bytes: int | None) -> float:
    """Seconds from the start; `weights_bytes` is None where nobody knows (a hub id)."""
    if not weights_bytes:
        return said_seconds
    return said_seconds + ceil(weights_bytes / SLOW_DISK_BYTES_PER_SECOND)


def ready_by(started_at: float, deadline: float, log_grew_at: float | None) -> float:
    """The moment at which an engine that is not ready has failed to start. Monotonic seconds."""
    limit = started_at + deadline
    if log_grew_at is None:
        return limit
    return min(started_at + deadline * MOST_TIMES, max(limit, log_grew_at + QUIET_SECONDS))
