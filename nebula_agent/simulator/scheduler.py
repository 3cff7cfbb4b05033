"""Which requests the next step of the simulated engine serves, and with how many tokens: continuous batching.

Theory (vLLM v1, `v1/core/sched/scheduler.py`). A request is a row of tokens, of which some are computed. A step may
compute `max_num_batched_tokens` in all. Running requests come first, in order: each asks for what it has not computed,
one token when it decodes, a chunk when its prompt is not through. Whoever finds no free block makes the *last* running
request give all of its blocks back and wait at the front of the queue; that may be itself. If nobody was preempted,
waiting requests follow, first come first served, while sequences, budget and blocks last; a new one starts behind the
prefix it finds in the cache. The last token is never taken from there, since somebody has to compute the logits.
A request whose tokens are all computed after the step yields one more token.

Pure: no clock, no I/O, no randomness. The caller runs `schedule` -> (time passes) -> `advance`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nebula_agent.simulator.blocks import BlockPool, extend_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one engine can hold: tokens per step, sequences per step, blocks of the cache."""

    max_num_batched_tokens: int
    max_num_seqs: int
    num_blocks: int
    block_size: int
    prefix_caching: bool = True


@dataclass(slots=True)
class ScheduledRequest:
    """A request as the scheduler sees it; the scheduler is its only writer."""

    request_id: str
    tokens: list[int]
    #: Prompts whose log probabilities were asked for have to be computed anew.
    read_cache: bool = True
    prompt_length: int = 0
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    started: bool = False
    blocks: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step: tokens per request id, of which `decode_requests` were decodes and `prefill_tokens` prompt."""

    tokens: dict[str, int]
    decode_requests: int
    prefill_tokens: int
    started: tuple[str, ...]
    preempted: tuple[str, ...]

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())


class Scheduler:
    """The running and the waiting requests of one engine."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, limits.block_size, caching=limits.prefix_caching)
        self.running: list[ScheduledRequest] = []
        self.waiting: deque[ScheduledRequest] = deque()
        #: Tokens looked up in and found in the prefix cache, ever; preempted requests do not count again.
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: ScheduledRequest) -> None:
        self.waiting.append(request)

    def remove(self, request_id: str) -> bool:
        """Finished or aborted: its blocks are free at once."""
        for request in self.running:
            if request.request_id == request_id:
                self.running.remove(request)
                self._release(request)
                return True
        for request in self.waiting:
            if request.request_id == request_id:
                self.waiting.remove(request)
                return True
        return False

    def schedule(self) -> Step:
        """Decides the next step and takes its blocks; empty if nothing can move."""
        budget = self.limits.max_num_batched_tokens
        tokens: dict[str, int] = {}
        preempted: list[str] = []
        for request in list(self.running):
            if budget == 0:
                break
            if request.request_id in preempted:
                break
            count = min(len(request.tokens) - request.computed, budget)
            if self._make_room(request, count, preempted):
                tokens[request.request_id] = count
                budget -= count
        started: list[str] = []
        if not preempted:
            started = self._admit(budget, tokens)
        decodes, prefill = self._split(tokens)
        return Step(
            tokens=tokens,
            decode_requests=decodes,
            prefill_tokens=prefill,
            started=tuple(started),
            preempted=tuple(preempted),
        )

    def advance(self, step: Step) -> Iterator[ScheduledRequest]:
        """Counts the step's tokens as computed; yields each request that now owes its next token.

        Requests removed while the step ran are skipped. The caller appends the token or removes the request.
        """
        size = self.limits.block_size
        for request in [request for request in self.running if request.request_id in step.tokens]:
            before = request.computed
            request.computed += step.tokens[request.request_id]
            if request.computed // size > before // size:
                extend_keys(request.keys, request.tokens, size)
                for full in range(before // size, request.computed // size):
                    self.pool.mark_full(request.blocks[full], request.keys[full])
            if request.computed == len(request.tokens):
                yield request

    def _make_room(self, request: ScheduledRequest, count: int, preempted: list[str]) -> bool:
        """Gives `request` blocks for `count` more tokens, at the expense of the last ones running."""
        while not self._grow(request, count):
            last = self.running.pop()
            self._release(last)
            last.preemptions += 1
            self.waiting.appendleft(last)
            preempted.append(last.request_id)
            if last is request:
                return False
        return True

    def _admit(self, budget: int, tokens: dict[str, int]) -> list[str]:
        started: list[str] = []
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            shared = self._cached_prefix(request)
            cached = len(shared) * self.limits.block_size
            count = min(len(request.tokens) - cached, budget)
            needed = self._blocks_for(cached + count) - len(shared)
            blocks = self.pool.take(shared, needed)
            if blocks is None:
                break
            self.waiting.popleft()
            self.running.append(request)
            request.blocks = blocks
            request.computed = cached
            if not request.started:
                request.started = True
                request.cached = cached
                started.append(request.request_id)
                if request.read_cache and self.limits.prefix_caching:
                    self.prefix_queries += len(request.tokens)
                    self.prefix_hits += cached
            tokens[request.request_id] = count
            budget -= count
        return started

    def _cached_prefix(self, request: ScheduledRequest) -> Sequence[int]:
        if not request.read_cache or not self.limits.prefix_caching:
            return []
        extend_keys(request.keys, request.tokens, self.limits.block_size)
        usable = (len(request.tokens) - 1) // self.limits.block_size
        return self.pool.find_prefix(request.keys[:usable])

    def _grow(self, request: ScheduledRequest, count: int) -> bool:
        needed = self._blocks_for(request.computed + count) - len(request.blocks)
        if needed <= 0:
            return True
        taken = self.pool.take([], needed)
        if taken is None:
            return False
        request.blocks.extend(taken)
        return True

    def _release(self, request: ScheduledRequest) -> None:
        self.pool.release(request.blocks)
        request.blocks = []
        request.computed = 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _split(self, tokens: dict[str, int]) -> tuple[int, int]:
        decodes = prefill = 0
        for request in self.running:
            count = tokens.get(request.request_id)
            if count is None:
                continue
            if count == 1 and request.computed >= request.prompt_length:
                decodes += 1
            else:
                prefill += count
        return decodes, prefill
