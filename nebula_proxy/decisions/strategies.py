"""The strategies: each one function from a request and the weighed field to a score per replica, lower is better.

**Theory of `prefix_cache_aware`**, the default. What a client waits for is the first token, and what that costs is
prompt to be computed. So a score is bytes of prompt: those of this request that the replica is not known to hold, an
eighth of those that were sent there before and are not read yet, and 1 KiB (256 tokens) for each open request, because
decoding slows prefill. A *load guard* comes first: when loads have drifted apart by more than max(8, half their mean),
those above the mean are not weighed at all, whatever they hold. So a hot prefix spreads to further replicas before it
drowns one, and cold prompts go to where the least is to be done.

The constants were found by replaying the Mooncake conversation trace (`benchmarks/routing_replay.py`; decision 4).
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from nebula_core.wire.openai import Dialect, Facts
from nebula_proxy.decisions.field import Weighed
from nebula_proxy.decisions.prefix_index import PrefixIndex
from nebula_proxy.decisions.prompt import BLOCK_BYTES, ENDS, chain, prompt_of, seed_of
from nebula_proxy.decisions.rendezvous import ranks
from nebula_proxy.decisions.sessions import session_of

#: The guard fires when the highest and the lowest load are further apart than the greater of these; the part is of the mean.
GUARD_REQUESTS = 8
GUARD_PART = 0.5
#: What an open request counts in bytes of prompt, and a byte that is queued against one of the request's own.
REQUEST_BYTES = 1024
UNREAD_PART = 0.125
#: Scores so near to the lowest are equal where other processes send prompts too: all break such ties alike, so that a
#: conversation that comes by another process finds what it left. The loads they see differ by about as much anyway.
SHARED_SLACK_BYTES = 4 * REQUEST_BYTES


_NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})


class Ask:
    """What a strategy may know of a request; the prompt is looked at only by those that ask for it."""

    __slots__ = ("_chain", "_dialect", "_facts", "_matched", "_root", "headers", "index", "size")

    def __init__(
        self,
        facts: Facts | None = None,
        dialect: Dialect = Dialect.CHAT,
        headers: Mapping[bytes, bytes] = _NO_HEADERS,
        index: PrefixIndex | None = None,
        root: int = 0,
    ) -> None:
        self._facts = facts
        self._dialect = dialect
        #: Where its digests begin: the cluster's secret, and the caller where callers must not share.
        self._root = root
        self._chain: list[int] | None = None
        self._matched: list[int] | None = None
        #: By their names in lower case.
        self.headers = headers
        self.index = index
        #: Bytes of the prompt; known once the chain is.
        self.size = 0

    @property
    def session(self) -> int | None:
        """What keeps requests together (`session_affinity`); None when the client said nothing of the kind."""
        return session_of(self.headers, self._facts)

    @property
    def chain(self) -> list[int]:
        """The digests of the prompt."""
        if self._chain is None:
            facts = self._facts
            prompt = b"" if facts is None else prompt_of(facts, self._dialect)
            size = self.size = len(prompt)
            # Too short to have a digest. (Without facts there is no prompt.)
            short = size <= BLOCK_BYTES
            self._chain = [] if short else chain(prompt, seed_of(facts, self._root))  # type: ignore[arg-type] # not None
        return self._chain

    def matched(self, weighed: Weighed) -> list[int] | None:
        """Bytes of the prompt each replica of the field holds, as far as the index knows; None without a prompt."""
        digests = self.chain
        if not digests:
            return None
        found = [0] * len(weighed.own)
        if self.index is not None:
            of_seat = weighed.field.of_seat
            for depth, mask in self.index.match(digests):
                size = ENDS[depth - 1]
                left = mask
                while left:
                    bit = left & -left
                    left ^= bit
                    place = of_seat.get(bit)
                    if place is not None:
                        found[place] = size
        self._matched = found
        return found

    @property
    def looked_up(self) -> list[int] | None:
        """The digests, when the strategy asked the index for them."""
        return self._chain if self._matched is not None else None

    def held(self, place: int) -> int:
        """What `matched` found for one place of the last field; 0 when nobody asked."""
        matched = self._matched
        return matched[place] if matched is not None and place < len(matched) else 0

    def next_digest(self, depth_bytes: int) -> int | None:
        """The digest of the first part of the prompt behind `depth_bytes`: what is its own. None at its end."""
        for end, digest in zip(ENDS, self.chain, strict=False):
            if end > depth_bytes:
                return digest
        return None


class Verdict(NamedTuple):
    """What a strategy says beyond its scores."""

    #: One per place of the field; infinity is not to be taken.
    scores: Sequence[float]
    #: One word for the metric in place of `lowest`.
    reason: str | None = None
    #: What overruled the strategy's own order, for people.
    guard: str | None = None
    #: Equals are told apart by rendezvous of this key, else they take turns.
    tie: int | None = None
    #: Scores that differ by no more are equal.
    slack: float = 0.0
    #: Of equals that are told apart by nothing else two are drawn, and the one with the emptier cache taken.
    drawn: bool = True
    #: The scores say what other callers have sent: for operators only.
    private: bool = False


Strategy = Callable[[Ask, Weighed], Sequence[float] | Verdict]


def least_pending(ask: Ask, weighed: Weighed) -> Sequence[float]:  # noqa: ARG001 - the same for every request
    """Open requests of all proxies and what waits inside the engine."""
    return weighed.loads


def least_kv_cache(ask: Ask, weighed: Weighed) -> Sequence[float]:  # noqa: ARG001 - the same for every request
    """Fill of the KV cache with what was sent since the sample; open requests count a little, to tell equals apart."""
    field = weighed.field
    return [
        usage + each * (mine - row.inflight_at_sample if mine > row.inflight_at_sample else 0) + load / most
        for usage, each, mine, row, load, most in zip(
            field.kv, field.kv_each, weighed.own, field.rows, weighed.loads, field.max_inflight, strict=True
        )
    ]


def round_robin(ask: Ask, weighed: Weighed) -> Verdict:  # noqa: ARG001 - the same for every request
    """All are equal, and equals take turns. For comparison in benchmarks only."""
    return Verdict([0.0] * len(weighed.own), "turn", drawn=False)


def prefix_cache_aware(ask: Ask, weighed: Weighed) -> Verdict:
    """Least prompt to be computed before the first token; see the theory above."""
    loads = weighed.loads
    matched = ask.matched(weighed)
    scores = [load * REQUEST_BYTES for load in loads]
    if (unread := weighed.unread) is not None:
        scores = [score + part * UNREAD_PART for score, part in zip(scores, unread, strict=True)]
    if matched is None:
        # No prompt, or one too short to be found again.
        guard = _spread(loads, scores)
        return Verdict(scores, "cold" if guard is None else "guard", guard, None, 0.0, private=True)
    size = ask.size
    scores = [score + size - held for score, held in zip(scores, matched, strict=True)]
    guard = _spread(loads, scores)
    if guard is not None:
        return Verdict(scores, "guard", guard, private=True)
    best = max(matched)
    slack = SHARED_SLACK_BYTES if weighed.field.shared else REQUEST_BYTES
    return Verdict(scores, "prefix" if best else "cold", None, ask.next_digest(best), slack, private=True)


def session_affinity(ask: Ask, weighed: Weighed) -> Sequence[float] | Verdict:
    """The same session to the same replica, by rendezvous; away from one that is overloaded; else least pending."""
    session = ask.session
    if session is None:
        return Verdict(weighed.loads, "no_session")
    scores = ranks(session, weighed.field.names)
    guard = _spread(weighed.loads, scores)
    return Verdict(scores, "session" if guard is None else "guard", guard)


def _spread(loads: list[float], scores: list[float]) -> str | None:
    """The load guard: where loads have drifted too far apart, strikes out those above the mean; says so."""
    lowest, highest = min(loads), max(loads)
    apart = highest - lowest
    if apart <= GUARD_REQUESTS:
        return None
    mean = sum(loads) / len(loads)
    if apart <= mean * GUARD_PART:
        return None
    for place, load in enumerate(loads):
        if load > mean:
            scores[place] = inf
    return f"loads {lowest:g} to {highest:g} apart: only up to their mean {mean:.1f}"


BUILT_IN: Mapping[str, Strategy] = MappingProxyType(
    {
        "prefix_cache_aware": prefix_cache_aware,
        "least_pending": least_pending,
        "least_kv_cache": least_kv_cache,
        "session_affinity": session_affinity,
        "round_robin": round_robin,
    }
)
DEFAULT_STRATEGY = "prefix_cache_aware"
#: What is taken in place of a strategy that is not known here or fails.
FALLBACK_STRATEGY = "least_pending"
