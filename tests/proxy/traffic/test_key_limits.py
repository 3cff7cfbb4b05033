"""Two workers and a real store: together they keep the limits of a key, and never ask for each request."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from nebula_core.records.access import KeyLimits
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.traffic.key_limits import KeyClaim, KeyLimiter, duration
from tests.support.store import StoreServer


@pytest.fixture
async def store(store_server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """It is given time to answer: what is said here of two workers holds while the store does, however busy this machine."""
    monkeypatch.setattr("nebula_core.store.store.LIMITS_TIMEOUT_SECONDS", 60.0)
    async with await connect(store_server.settings(socket_timeout_seconds=60.0)) as opened:
        yield opened


class Client:
    """One request, as far as its limits go."""

    def __init__(self) -> None:
        self.claim: KeyClaim | None = None
        self.refusal: Refusal | None = None
        self.settled = asyncio.Event()
        #: It could not be told at once.
        self.waited = False

    def claim_settled(self, refusal: Refusal | None) -> None:
        self.refusal = refusal
        self.settled.set()

    @property
    def admitted(self) -> bool:
        return self.refusal is None


@asynccontextmanager
async def limiter(store: Store, name: str, workers: int = 2) -> AsyncIterator[KeyLimiter]:
    made = KeyLimiter(name, lambda: workers, lambda: 0.5)

    async def run() -> None:
        while True:
            await made.step(store)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def ask(one: KeyLimiter, limits: KeyLimits, tokens: int = 10, *, stream: bool = False) -> Client:
    client = Client()
    client.refusal = one.claim(client, "k", limits, tokens, time.monotonic(), stream=stream)
    if client.refusal is None and client.claim is not None and client.claim.taken is None:
        client.waited = True
        async with asyncio.timeout(60):
            await client.settled.wait()
    return client


def end(one: KeyLimiter, client: Client, used: int | None = 10) -> None:
    assert client.claim is not None
    one.end(client.claim, used)


async def test_two_workers_keep_the_requests_of_a_key(store: Store) -> None:
    limits = KeyLimits(requests_per_minute=60)
    async with limiter(store, "one") as one, limiter(store, "two") as two:
        began = time.monotonic()
        clients = await asyncio.gather(*(ask(worker, limits) for _ in range(100) for worker in (one, two)))
        took = time.monotonic() - began
        admitted = sum(client.admitted for client in clients)
        assert 60 - 2 * 3 <= admitted <= 60 * (1 + took / 60) + 1e-6
        for client in clients:
            if client.refusal is not None:
                assert (client.refusal.status, client.refusal.code) == (429, "rate_limited")
                assert client.refusal.retry_after is not None
                assert 1 <= client.refusal.retry_after <= 60


async def test_one_worker_gets_the_whole_limit_and_the_store_few_calls(store: Store) -> None:
    limits = KeyLimits(requests_per_minute=600_000)
    async with limiter(store, "one", 1) as one:
        before = int((await store._commands.ask("INFO", "commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))
        clients = [await ask(one, limits) for _ in range(2000)]
        assert all(client.admitted for client in clients)
        stats = await store._commands.ask("INFO", "commandstats")
        assert int(stats["cmdstat_evalsha"]["calls"]) - before < 40
        small = KeyLimits(requests_per_minute=25)
        began = time.monotonic()
        found = await asyncio.gather(*(_ask_as(one, "other", small) for _ in range(40)))
        took = time.monotonic() - began
        assert 25 <= sum(client.admitted for client in found) <= 25 * (1 + took / 60) + 1e-6


async def _ask_as(one: KeyLimiter, key: str, limits: KeyLimits) -> Client:
    client = Client()
    client.refusal = one.claim(client, key, limits, 1, time.monotonic(), stream=False)
    if client.refusal is None and client.claim is not None and client.claim.taken is None:
        await client.settled.wait()
    return client


async def test_two_workers_keep_the_streams_of_a_key(store: Store) -> None:
    limits = KeyLimits(max_streams=3)
    async with limiter(store, "one") as one, limiter(store, "two") as two:
        open_ones: list[tuple[KeyLimiter, Client]] = []
        for _ in range(6):
            for worker in (one, two):
                client = await ask(worker, limits, stream=True)
                if client.admitted:
                    open_ones.append((worker, client))
                assert len(open_ones) <= 3
        assert len(open_ones) == 3
        assert not (await ask(one, limits, stream=True)).admitted
        assert (await ask(one, limits, stream=False)).admitted, "a plain answer is no stream"
        # A slot that is freed at one worker is soon had by the other.
        worker, client = open_ones[0]
        end(worker, client)
        other = two if worker is one else one
        async with asyncio.timeout(60):
            while not (await ask(other, limits, stream=True)).admitted:
                await asyncio.sleep(0.01)


async def test_tokens_are_settled_between_workers(store: Store) -> None:
    limits = KeyLimits(tokens_per_minute=6000)
    async with limiter(store, "one") as one, limiter(store, "two") as two:
        first = await ask(one, limits, 5500)
        assert first.admitted
        assert not (await ask(two, limits, 5000)).admitted
        end(one, first, 100)
        async with asyncio.timeout(60):
            while not (await ask(two, limits, 5000)).admitted:
                await asyncio.sleep(0.01)


async def test_an_error_takes_nothing(store: Store) -> None:
    limits = KeyLimits(requests_per_minute=5, tokens_per_minute=100)
    async with limiter(store, "one", 1) as one:
        for _ in range(50):
            client = await ask(one, limits, 90)
            assert client.admitted
            end(one, client, None)


async def test_a_client_that_leaves_while_it_waits_for_word_takes_nothing(store: Store) -> None:
    limits = KeyLimits(requests_per_minute=1)
    one = KeyLimiter("one", lambda: 1, lambda: 0.5)
    one._attached = True
    gone, stays = Client(), Client()
    for client in (gone, stays):
        assert one.claim(client, "k", limits, 1, time.monotonic(), stream=False) is None
        assert client.claim is not None
        assert client.claim.taken is None
    assert gone.claim is not None
    one.end(gone.claim, None)
    await one.step(store)
    assert not gone.settled.is_set()
    assert stays.settled.is_set()
    assert stays.admitted
    assert not one._parked


async def test_nobody_waits_for_a_task_that_does_not_run() -> None:
    one = KeyLimiter("one", lambda: 2, lambda: 0.5)
    one._attached = True
    now = time.monotonic()
    clients = [Client() for _ in range(3)]
    for client in clients:
        assert one.claim(client, "k", KeyLimits(requests_per_minute=4), 1, now, stream=False) is None
    one.sweep(now + 1.0)
    assert not any(client.settled.is_set() for client in clients)
    one.sweep(now + 2.5)
    assert [client.settled.is_set() for client in clients] == [True] * 3
    assert [client.admitted for client in clients] == [True, True, False], "half of four, as two workers share them"
    assert not one._parked


async def test_without_the_store_each_worker_goes_on_with_its_share(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    limits = KeyLimits(requests_per_minute=60)
    async with await connect(server.settings()) as store, limiter(store, "one") as one, limiter(store, "two") as two:
        assert (await ask(one, limits)).admitted
        server.freeze()
        clients = [await ask(worker, limits) for worker in (one, two) * 100]
        assert 60 - 4 <= sum(client.admitted for client in clients) <= 2 * 60, "once from each side"
        assert sum(client.waited for client in clients) <= 2, "one at each worker finds out, for all others"
        server.thaw()
        async with asyncio.timeout(60):
            while any(share.away for worker in (one, two) for share in worker._shares.values()):
                await asyncio.sleep(0.02)


async def test_a_stopped_worker_gives_its_slice_back(store: Store) -> None:
    limits = KeyLimits(requests_per_minute=100)
    async with limiter(store, "one", 1) as one:
        await ask(one, limits)
    await one.give_back(store)
    async with limiter(store, "two", 1) as two:
        clients = await asyncio.gather(*(ask(two, limits) for _ in range(120)))
        assert sum(client.admitted for client in clients) >= 99


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, b"0ms"), (0.12, b"120ms"), (1.0, b"1s"), (8.64, b"8.64s"), (360.0, b"6m0s"), (61.2, b"1m1s")],
)
def test_durations_are_those_of_openai(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text
