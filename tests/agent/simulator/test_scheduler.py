"""The laws of the simulated scheduler, under any order of arrivals, aborts and steps."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nebula_agent.simulator.scheduler import Limits, ScheduledRequest, Scheduler

#: Few different tokens in runs of the same: prefixes are shared often.
PROMPTS = st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=40)


class SchedulerLaws(RuleBasedStateMachine):
    @initialize(
        budget=st.integers(1, 24),
        sequences=st.integers(1, 6),
        blocks=st.integers(16, 40),
        caching=st.booleans(),
    )
    def start(self, budget: int, sequences: int, blocks: int, caching: bool) -> None:
        # 16 blocks of 4 hold the longest request, 40 + 20 tokens, when it is alone.
        self.limits = Limits(
            max_num_batched_tokens=budget,
            max_num_seqs=sequences,
            num_blocks=blocks,
            block_size=4,
            prefix_caching=caching,
        )
        self.scheduler = Scheduler(self.limits)
        self.numbers = 0
        self.lengths: dict[str, int] = {}

    @rule(prompt=PROMPTS, wanted=st.integers(1, 20))
    def arrive(self, prompt: list[int], wanted: int) -> None:
        request = ScheduledRequest(f"{self.numbers:05d}", list(prompt))
        self.lengths[request.request_id] = len(prompt) + wanted
        self.numbers += 1
        self.scheduler.add(request)

    @rule(data=st.data())
    @precondition(lambda self: self.lengths)
    def abort(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(sorted(self.lengths)))
        del self.lengths[victim]
        assert self.scheduler.remove(victim)
        assert not self.scheduler.remove(victim)

    @rule(data=st.data())
    @precondition(lambda self: self.lengths)
    def step(self, data: st.DataObject) -> None:
        step = self.scheduler.schedule()
        assert 0 < step.total_tokens <= self.limits.max_num_batched_tokens
        assert set(step.tokens) <= {request.request_id for request in self.scheduler.running}
        assert not set(step.preempted) & set(step.tokens)
        assert not (step.preempted and step.started)
        if data.draw(st.booleans()):
            self.abort(data)  # somebody leaves while the step runs
        self._advance(step)

    def _advance(self, step) -> None:
        done = []
        for request in self.scheduler.advance(step):
            request.tokens.append(1)
            if len(request.tokens) >= self.lengths[request.request_id]:
                done.append(request.request_id)
        for request_id in done:
            del self.lengths[request_id]
            assert self.scheduler.remove(request_id)

    @invariant()
    def no_block_is_lost_or_used_by_nobody(self) -> None:
        pool = self.scheduler.pool
        held = Counter(block for request in self.scheduler.running for block in request.blocks)
        assert held == Counter({block: users for block, users in enumerate(pool._users) if users})
        assert set(pool._free) == set(range(self.limits.num_blocks)) - set(held)
        assert all(not request.blocks for request in self.scheduler.waiting)
        assert 0 <= pool.usage <= 1

    @invariant()
    def who_runs_has_the_blocks_for_what_is_computed(self) -> None:
        for request in self.scheduler.running:
            assert (
                request.computed <= len(request.blocks) * 4 < request.computed + 4 + self.limits.max_num_batched_tokens
            )
            assert len(set(request.blocks)) == len(request.blocks)

    @invariant()
    def first_come_first_served(self) -> None:
        order = [request.request_id for request in (*self.scheduler.running, *self.scheduler.waiting)]
        assert order == sorted(order)
        assert set(order) == set(self.lengths)
        assert len(self.scheduler.running) <= self.limits.max_num_seqs

    @invariant()
    def hits_are_full_blocks_and_never_the_last_token(self) -> None:
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            assert request.cached % 4 == 0
            assert request.cached < request.prompt_length
            assert self.limits.prefix_caching or request.cached == 0
        assert self.scheduler.prefix_hits <= self.scheduler.prefix_queries

    @invariant()
    def a_key_stands_for_one_block(self) -> None:
        pool = self.scheduler.pool
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of

    def teardown(self) -> None:
        """Whatever happened: everybody is served in the end, and every block is free."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(100_000):
            if not self.lengths:
                break
            self._advance(self.scheduler.schedule())
        assert not self.lengths
        assert self.scheduler.pool.free_blocks == self.limits.num_blocks


TestSchedulerLaws = SchedulerLaws.TestCase
TestSchedulerLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def limits(**changes) -> Limits:
    given = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "num_blocks": 16, "block_size": 4, **changes}
    return Limits(**given)


def run(scheduler: Scheduler):
    """One step; every request that owes a token gets one."""
    step = scheduler.schedule()
    for request in scheduler.advance(step):
        request.tokens.append(7)
    return step


def test_decodes_come_before_the_chunks_of_new_prompts():
    scheduler = Scheduler(limits(max_num_batched_tokens=10))
    scheduler.add(ScheduledRequest("a", [1] * 4))
    run(scheduler)
    scheduler.add(ScheduledRequest("b", [2] * 25))
    steps = [run(scheduler) for _ in range(4)]
    assert [step.tokens for step in steps] == [{"a": 1, "b": 9}, {"a": 1, "b": 9}, {"a": 1, "b": 7}, {"a": 1, "b": 1}]
    assert [(step.decode_requests, step.prefill_tokens) for step in steps] == [(1, 9), (1, 9), (1, 7), (2, 0)]


def test_the_last_one_running_is_preempted_and_waits_in_front():
    scheduler = Scheduler(limits(num_blocks=6, prefix_caching=False))
    for name in "abc":
        scheduler.add(ScheduledRequest(name, [1] * 8))
    assert run(scheduler).started == ("a", "b", "c")
    step = run(scheduler)  # each needs a third block, and there is none: c gives its two to a and b
    assert step.preempted == ("c",)
    assert step.tokens == {"a": 1, "b": 1}
    scheduler.add(ScheduledRequest("d", [1]))
    assert [request.request_id for request in scheduler.waiting] == ["c", "d"]
    assert scheduler.waiting[0].preemptions == 1
    assert scheduler.waiting[0].tokens == [1] * 8 + [7]


def test_a_prefix_is_found_in_full_blocks_and_the_last_token_is_computed_again():
    scheduler = Scheduler(limits())
    scheduler.add(ScheduledRequest("a", [1, 2, 3, 4, 5, 6, 7, 8]))
    run(scheduler)
    scheduler.remove("a")
    for name, prompt, cached in (
        ("same", [1, 2, 3, 4, 5, 6, 7, 8], 4),
        ("longer", [1, 2, 3, 4, 5, 6, 7, 8, 9], 8),
        ("other tail", [1, 2, 3, 4, 5, 6, 0, 8, 9], 4),
        ("other head", [0, 2, 3, 4, 5, 6, 7, 8, 9], 0),
    ):
        request = ScheduledRequest(name, prompt)
        scheduler.add(request)
        run(scheduler)
        scheduler.remove(name)
        assert request.cached == cached, name
    assert (scheduler.prefix_queries, scheduler.prefix_hits) == (8 + 8 + 9 + 9 + 9, 4 + 8 + 4)


def test_the_least_recently_used_prefix_is_forgotten_first():
    scheduler = Scheduler(limits(num_blocks=4))
    for name, token in (("a", 1), ("b", 2), ("a again", 1), ("c", 3)):
        scheduler.add(ScheduledRequest(name, [token] * 5))  # two blocks each, one of them full
        run(scheduler)
        scheduler.remove(name)
    pool = scheduler.pool
    known = {token: bool(pool.find_prefix([hash((0, (token,) * 4))])) for token in (1, 2, 3)}
    assert known == {1: True, 2: False, 3: True}


def test_the_cache_is_only_forgotten_when_nobody_uses_it():
    scheduler = Scheduler(limits())
    scheduler.add(ScheduledRequest("a", [1] * 8))
    run(scheduler)
    assert not scheduler.pool.reset_cache()
    scheduler.remove("a")
    assert scheduler.pool.reset_cache()
    again = ScheduledRequest("b", [1] * 8)
    scheduler.add(again)
    run(scheduler)
    assert again.cached == 0
