"""The law of the watcher: whatever happens on the way, it ends up with exactly what the store holds."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import NodeIntent
from nebula_core.records.snapshot import DURABLE_FIELDS, decode_durable
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store import keys
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from tests.support.records import a_placement
from tests.support.store import StoreServer

KEY = SigningKey.generate()
FOREIGN = """
local revision = redis.call('INCR', KEYS[1])
redis.call('XADD', KEYS[2], revision .. '-0', 'kind', 'quota', 'id', ARGV[1], 'value', '{}')
"""
NAMES = st.sampled_from(["a", "b", "c", "d"])
NUMBERS = st.integers(1, 5)
STEPS = st.one_of(
    st.tuples(st.just("deployment"), NAMES, NUMBERS),
    st.tuples(st.just("intent"), NAMES, NUMBERS),
    st.tuples(st.just("remove"), NAMES, NUMBERS),
    st.tuples(st.just("placements"), st.lists(st.tuples(NAMES, st.booleans()), max_size=4), NUMBERS),
    st.tuples(st.just("trim"), st.just(""), NUMBERS),
    st.tuples(st.just("lost entry"), NAMES, NUMBERS),
    st.tuples(st.just("foreign entry"), NAMES, NUMBERS),
    st.tuples(st.just("cut"), st.just(""), NUMBERS),
    st.tuples(st.just("breathe"), st.just(""), NUMBERS),
)


async def do(store: Store, step: tuple[str, Any, int]) -> None:
    what, name, number = step
    match what:
        case "deployment":
            spec = DeploymentSpec(source="m", replicas=number)
            await store.put(ChangeKind.DEPLOYMENT, name, Deployment(name=name, generation=number, spec=spec))
        case "intent":
            await store.put(ChangeKind.INTENT, name, NodeIntent(node=name, generation=number, cordoned=number % 2 == 0))
        case "remove":
            await store.remove(ChangeKind.DEPLOYMENT if number % 2 else ChangeKind.INTENT, name)
        case "placements":
            await store.apply_placements(
                1,
                [
                    (replica, sign_placement(KEY, a_placement(replica, revision=number)) if kept else None)
                    for replica, kept in name
                ],
            )
        case "trim":
            await store._commands.ask("XTRIM", keys.CHANGES, "MAXLEN", number - 1)
        case "lost entry":
            # A change whose entry nobody can read any more: the stream was trimmed past it.
            await store._commands.ask_all(
                [
                    ["INCR", keys.REVISION],
                    ["HSET", keys.DURABLE[ChangeKind.INTENT], name, NodeIntent(node=name, generation=99).to_json()],
                ],
                atomic=True,
            )
        case "foreign entry":
            # A kind of durable record of a newer version.
            await store._commands.ask("EVAL", FOREIGN, 2, keys.REVISION, keys.CHANGES, name)
        case "cut":
            await store._commands.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        case "breathe":
            await asyncio.sleep(0.002 * number)


async def content(store: Store) -> dict[str, dict[str, object]]:
    return {
        DURABLE_FIELDS[kind]: {name: decode_durable(kind, value) for name, value in (await store.get_all(kind)).items()}
        for kind in keys.DURABLE
    }


def seen(watcher: Watcher) -> dict[str, dict[str, object]]:
    return {field: dict(getattr(watcher.snapshot, field)) for field in DURABLE_FIELDS.values()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writers=st.lists(st.lists(STEPS, max_size=25), min_size=1, max_size=3), in_step=st.booleans())
async def test_every_watcher_converges_to_the_store(
    store_server: StoreServer, writers: list[list[tuple[str, Any, int]]], in_step: bool
) -> None:
    store_server.command("FLUSHALL")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(await connect(store_server.settings()))
        watchers = [await stack.enter_async_context(Watcher(store, poll_seconds=poll)) for poll in (0.002, 0.02)]
        revisions: list[list[int]] = [[], []]
        for watcher, found in zip(watchers, revisions, strict=True):

            def heard(_: object, changed: Changed, watcher: Watcher = watcher, found: list[int] = found) -> None:
                found.append(watcher.revision)

            watcher.add_listener(heard)

        async def write(steps: list[tuple[str, Any, int]]) -> None:
            mine = await stack.enter_async_context(await connect(store_server.settings()))
            for step in steps:
                await persistently(mine, step)

        async with asyncio.timeout(30):
            if in_step:
                # Else the changes come while they read everything for the first time.
                await asyncio.gather(*(watcher.synced() for watcher in watchers))
            await asyncio.gather(*(write(steps) for steps in writers))
            final = await content(store)
            revision = await store.revision()
            for watcher in watchers:
                await watcher.wait_for(lambda snapshot: snapshot.revision == revision and snapshot.incarnation)
                assert seen(watcher) == final
        for found in revisions:
            assert found == sorted(found)


async def persistently(store: Store, step: tuple[str, Any, int]) -> None:
    """A writer whose connection was cut by another repeats itself: every write here is safe to repeat."""
    from nebula_core.errors import StoreUnavailable

    while True:
        try:
            return await do(store, step)
        except StoreUnavailable:
            if step[0] == "cut":
                return None
