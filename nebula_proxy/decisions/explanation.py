"""A choice explained: each candidate with its figures and its score, and in a few words why it was not the one.

Called for the few requests that leave a record, with the very columns and scores the choice was made with: a choice
carries them along, so nothing is worked out while the request is hurried on its way.
"""

from collections.abc import Mapping, Sequence
from math import inf, isinf
from types import MappingProxyType

from nebula_core.records.decision import CANDIDATES_KEPT, AttemptRecord, CandidateRecord
from nebula_proxy.decisions.admission import saturation
from nebula_proxy.decisions.candidates import Candidate, Standing
from nebula_proxy.decisions.routing import Choice
from nebula_proxy.decisions.strategies import Ask

_STANDING = {
    Standing.PROBE: "it is due for a probe",
    Standing.SUSPECT: "its node has been silent for a moment",
    Standing.STRUGGLING: "it failed a moment ago",
    Standing.SILENT: "its node is silent",
    Standing.OUT: "it cannot be reached",
}
#: Choices that no score was needed for.
_ELSEWHERE = {
    "pinned": "another one was asked for",
    "held": "another holds the response that is gone on from",
}
_NOTHING: Mapping[str, int] = MappingProxyType({})


def explained(
    choice: Choice | None,
    candidates: Sequence[Candidate],
    tried: str | None = None,
    *,
    inflight: Mapping[str, int] = _NOTHING,
    ask: Ask | None = None,
) -> AttemptRecord:
    """One attempt, without its times. `choice` None: none could be taken; `tried` is the replica that failed before.

    `candidates` are all there were. What this process had open is as it was when the choice was made; where there is
    no choice, `inflight` (by replica) stands for it, added to what the candidates say.
    """
    chosen = None if choice is None else choice.replica
    scores: dict[str, float] = {}
    own: dict[str, int] = {}
    shares: dict[str, float] = {}
    weighed = None if choice is None else choice.weighed
    verdict = None if choice is None else choice.verdict
    if weighed is not None and verdict is not None:
        replicas = weighed.field.replicas
        scores = dict(zip(replicas, verdict.scores, strict=True))
        own = dict(zip(replicas, weighed.own, strict=True))
        if ask is not None and ask.looked_up is not None and ask.size:
            shares = {replica: ask.held(place) / ask.size for place, replica in enumerate(replicas)}
    tier = min((_level(each) for each in candidates if each.replica != tried), default=Standing.OUT)
    lines = []
    for each in candidates:
        now = each._replace(inflight=own.get(each.replica, each.inflight + inflight.get(each.replica, 0)))
        score = scores.get(each.replica)
        lines.append(
            CandidateRecord(
                replica=each.replica,
                standing=each.standing.name.lower(),
                score=None if score is None or isinf(score) else score,
                inflight=now.inflight,
                elsewhere=now.elsewhere,
                waiting=now.waiting,
                kv_cache_usage=now.kv_cache_usage,
                sample_age_seconds=None if isinf(now.sample_age) else now.sample_age,
                saturation=saturation(now),
                prefix_ratio=shares.get(each.replica),
                chosen=each.replica == chosen,
                lost_because=None if each.replica == chosen else _why_not(now, choice, score, tier, tried),
            )
        )
    lines.sort(key=lambda line: (not line.chosen, inf if line.score is None else line.score, line.replica))
    return AttemptRecord(
        replica=chosen,
        strategy=None if choice is None else choice.strategy,
        reason=None if choice is None else choice.reason,
        guard=None if choice is None else choice.problem or (None if verdict is None else verdict.guard),
        candidates=tuple(lines[:CANDIDATES_KEPT]),
        candidates_total=len(lines),
    )


def _level(candidate: Candidate) -> Standing:
    return Standing.SOUND if candidate.standing is Standing.PROBE else candidate.standing


def _why_not(
    candidate: Candidate, choice: Choice | None, score: float | None, tier: Standing, tried: str | None
) -> str:
    if candidate.replica == tried:
        return "it was tried before"
    if candidate.standing is Standing.OUT or _level(candidate) > tier:
        return _STANDING[candidate.standing]
    if choice is not None and choice.reason in _ELSEWHERE:
        return _ELSEWHERE[choice.reason]
    if choice is None or score is None:
        return _full(candidate)
    if isinf(score):
        return "its load is above the mean while loads are far apart"
    verdict = choice.verdict
    if verdict is not None and score <= choice.score + verdict.slack:
        return "equal; it was another's turn" if verdict.tie is None else "equal; another is nearer to this prefix"
    return f"score {score:.6g} above {choice.score:.6g}"


def _full(candidate: Candidate) -> str:
    if candidate.weight <= 0:
        return "its share of the traffic is 0"
    open_ = candidate.inflight + candidate.elsewhere
    if open_ >= candidate.max_inflight:
        return f"full: {open_} open of {candidate.max_inflight}"
    if candidate.waiting is not None and candidate.waiting >= candidate.max_waiting:
        return f"full: {candidate.waiting} wait in it of {candidate.max_waiting}"
    if candidate.kv_cache_usage is not None and candidate.kv_cache_usage >= candidate.max_kv_cache_usage:
        return f"full: KV cache {candidate.kv_cache_usage:.0%} of {candidate.max_kv_cache_usage:.0%}"
    return "full: what was sent since its sample fills its queue"
