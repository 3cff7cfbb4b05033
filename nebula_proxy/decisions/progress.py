"""Whether a replica hangs, judged by the tokens that come through this process: health is progress, not HTTP 200.

A frozen engine goes on answering `/health` (vllm#17972), so nothing but silence tells. Its own counters are the *witness*: as
the agent samples them each second, a count that goes up is a sign of life like a byte of ours, and one that stands still
convicts sooner. Two cases:

- *stalled*: streams that were moving have all stopped, for longer than 20 of their own gaps and 5 s. One slow stream among
  moving ones is no hang; a prompt being computed may hold up the others, so its predicted time is allowed for. A lone
  stream without a witness is given 8 s, for an engine may think without showing it (a hidden reasoning, a tool call
  that is parsed as a whole).
- *mute*: nothing moves, and a request got no first token for longer than three times what its prompt should take, and 8 s.
  Without a witness 15 s: who waits inside an engine that others keep busy sees the same. And for a long prompt while nobody
  has seen how fast this model reads: counters of prompts go up when a prompt is done. Answers that are not streamed show
  nothing before their end, so they tell only before the witness, and while there are any, streams too.

Where no other replica could take them, all that a verdict brings its requests is an error, so it waits for as long as the agent,
who ends such an engine after 30 s: an engine may stand still for good reasons (vLLM compiles what a first request of its kind
needs; seen: 17 s on a busy machine).

With the second between two looks a lone request leaves a hung engine within 10 s (GOALS R4), by its tokens or by the witness.
Streams whose client is slow are paused by us and say nothing.
"""

from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import NamedTuple

STALL_SECONDS = 5.0
STALL_GAPS = 20.0
#: For a lone stream without a witness.
STALL_ALONE = 1.6
MUTE_SECONDS = 8.0
MUTE_UNSEEN_SECONDS = 15.0
MUTE_TIMES = 3.0
#: The engine fetches what the prompt points at (an image, a film) before it computes anything: vLLM gives a film 30 s.
FETCH_SECONDS = 30.0
#: For requests that could go nowhere else.
NOWHERE_ELSE_SECONDS = 30.0
#: Events after which a stream counts as one that was moving.
MOVING_EVENTS = 4
#: A sample may tell of tokens so much older than itself: a second between two scrapes, one on the way, and some.
WITNESS_LAG_SECONDS = 2.5
#: A witness was heard so lately: one sample may be lost or late, as when the engine does not answer the scrape.
WITNESS_FRESH_SECONDS = 3.5
#: Seconds per byte of a prompt until some were seen: 0.3 ms per token of 4 bytes, a large model on one GPU.
FIRST_GUESS = 75e-6
#: llama.cpp is what runs where there is no GPU: 20 ms per token, 8 billion parameters on a few cores.
SLOW_GUESS = 5e-3
#: Shorter prompts say nothing of the time per byte: the wait for the engine's turn is most of it.
TELLING_BYTES = 2048


class Flow(NamedTuple):
    """One open request on a replica that generates tokens, as this process sees it."""

    #: Seconds since the engine's last byte, or since the request was sent.
    silent: float
    #: Reads that brought events; 0 before the first.
    events: int
    #: Mean seconds between them, None while unknown.
    gap: float | None
    #: Of its body.
    size: int
    #: Its tokens come as they are made; else all at the end.
    streamed: bool = True
    #: Its prompt points at something that the engine fetches first.
    fetches: bool = False


class Replica(NamedTuple):
    """All that speaks for or against one replica at one moment."""

    flows: Sequence[Flow]
    #: Open requests that can say nothing: no tokens are made for them, or their client is slow.
    plain: int
    #: Seconds since any sign of life: a byte, also on requests that have ended, or a counter that went up.
    quiet: float
    #: The agent's samples tell of its counters, also of the time of this silence.
    witnessed: bool
    #: Another replica could take its requests.
    elsewhere: bool = True


class Verdict(StrEnum):
    STALLED = "stalled"
    MUTE = "mute"


def first_guess(engine: str) -> float:
    """Seconds per byte of a prompt on an engine of this kind, as long as none was seen."""
    return SLOW_GUESS if engine == "llamacpp" else FIRST_GUESS


def hang(seen: Replica, seconds_per_byte: float | None, guess: float = FIRST_GUESS) -> Verdict | None:
    """Whether the replica hangs, and how. `seconds_per_byte` is what prompts took lately (`PromptPace`), else `guess` holds."""
    pace = guess if seconds_per_byte is None else seconds_per_byte
    moving = [flow for flow in seen.flows if flow.events >= MOVING_EVENTS]
    patience = 0.0 if seen.elsewhere else NOWHERE_ELSE_SECONDS
    prompt = _prompt_seconds([flow for flow in seen.flows if flow.events == 0 and flow.streamed], pace)
    if moving:
        gaps = [flow.gap for flow in moving if flow.gap is not None]
        limit = max(STALL_SECONDS, STALL_GAPS * median(gaps) if gaps else 0.0, prompt, patience)
        if len(moving) == 1 and not seen.witnessed:
            limit *= STALL_ALONE
        stopped = min(flow.silent for flow in seen.flows if flow.events > 0)
        return Verdict.STALLED if min(stopped, seen.quiet) > limit else None
    waiting = [flow for flow in seen.flows if flow.streamed or seen.witnessed]
    if not waiting or (not seen.witnessed and (seen.plain or len(waiting) < len(seen.flows))):
        return None
    longest = max(flow.silent for flow in waiting)
    known = seconds_per_byte is not None or all(flow.size < TELLING_BYTES for flow in waiting)
    least = MUTE_SECONDS if seen.witnessed and known else MUTE_UNSEEN_SECONDS
    limit = max(least, patience, _prompt_seconds(waiting, pace))
    # What has said something lately is alive, though it may be long in coming to these.
    return Verdict.MUTE if longest > limit and seen.quiet > limit else None


def _prompt_seconds(waiting: Sequence[Flow], pace: float) -> float:
    """What the longest of their prompts may take, generously."""
    return max(
        (flow.size * pace * MUTE_TIMES + (FETCH_SECONDS if flow.fetches else 0.0) for flow in waiting), default=0.0
    )


class PromptPace(NamedTuple):
    """Seconds per byte of prompt, the slow side of what was seen lately: rises at once, falls slowly."""

    value: float | None = None

    def seen(self, seconds: float, size: int) -> "PromptPace":
        """After a first token came `seconds` after its request of `size` bytes was sent."""
        if size < TELLING_BYTES:
            return self
        each = seconds / size
        return PromptPace(each if self.value is None else max(each, 0.95 * self.value + 0.05 * each))
