"""Whether a request is let in: not into an engine that would drown, and with the reason when it is turned away.

Saturation of a replica is max(waiting / bound, KV cache / limit, in-flight / max); 1 is full (CONTRACT, 3). A model
without any endpoint is not a saturated one: that is 503 with why, never 429 (control_plane, 4.32).
"""

from nebula_proxy.decisions.candidates import SAMPLE_FRESH_SECONDS, Candidate
from nebula_proxy.decisions.load import even_share, waiting_now
from nebula_proxy.decisions.refusal import Refusal, model_starting, no_capacity, no_replica


def saturation(candidate: Candidate) -> float:
    """0 is idle, 1 is full. A stale sample says nothing: then only what the proxies themselves opened counts."""
    full = (candidate.inflight + candidate.elsewhere) / candidate.max_inflight
    if candidate.rivals:
        full = max(full, candidate.inflight / even_share(candidate.max_inflight, candidate.rivals))
    if candidate.sample_age <= SAMPLE_FRESH_SECONDS:
        waiting = waiting_now(candidate.waiting, candidate.inflight, candidate.inflight_at_sample)
        if waiting and (part := waiting / candidate.max_waiting) > full:
            full = part
        usage = candidate.kv_cache_usage
        if usage and (part := usage / candidate.max_kv_cache_usage) > full:
            full = part
    return full


#: Bytes of a request's body per token of its prompt: English text in JSON; only an estimate is asked for.
BYTES_PER_TOKEN = 4
#: Tokens of an answer whose client set no limit.
LIKELY_OUTPUT_TOKENS = 512


def estimated_tokens(body_bytes: int, output_limit: int | None) -> int:
    """What a request may take, prompt and answer, before anybody has counted; at least 1."""
    output = LIKELY_OUTPUT_TOKENS if output_limit is None else max(0, output_limit)
    return body_bytes // BYTES_PER_TOKEN + output + 1


def nothing_ready(model: str, *, ejected: int, starting: int, wanted: int, roll: float) -> Refusal:
    """Why a known model has no endpoint that may be tried."""
    if starting:
        return model_starting(model, starting, roll)
    if ejected:
        return no_replica(model, f"{ejected} failed a moment ago", roll)
    if wanted == 0:
        return no_replica(model, "it is scaled to 0", roll)
    return no_capacity(model, wanted, roll)
