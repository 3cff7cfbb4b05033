"""The line to the store: every wait has an end, every failure a next step, nothing durable is lost."""

import asyncio
import time
from collections.abc import Callable

import psutil
import pytest

from nebula_core.errors import StoreUnavailable, StoreUnfit
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import NodeIntent
from nebula_core.security.files import write_secret
from nebula_core.store import keys
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.fitness import check_info
from nebula_core.store.store import Store
from tests.support.store import StoreServer, persistently

Servers = Callable[..., StoreServer]


async def test_opening_a_store_that_is_away_fails_only_when_asked(tmp_path) -> None:
    async with await connect(StoreSettings(url=f"unix://{tmp_path}/none")) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
    assert caught.value.hint
    assert "none" in str(caught.value)


async def test_a_connection_that_is_made_later_looks_nothing_up_on_the_disk(
    store_server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await connect(store_server.settings()) as store:
        monkeypatch.setattr("redis.utils.get_lib_version", lambda: pytest.fail("it reads a file of the installation"))
        assert all(await asyncio.gather(*(store._commands.ask("PING") for _ in range(4))))


async def test_a_fit_store_passes(store: Store) -> None:
    await store.ensure_meta()
    await store.check()


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("--maxmemory-policy allkeys-lru", "maxmemory-policy noeviction"),
        ("--maxmemory-policy volatile-ttl", "maxmemory-policy noeviction"),
        ("--appendonly no", "appendonly yes"),
    ],
)
async def test_an_unfit_store_is_refused_with_the_line_to_change(own_store: Servers, line: str, fix: str) -> None:
    server = own_store(extra=[line])
    async with await connect(server.settings()) as store:
        with pytest.raises(StoreUnfit) as caught:
            await store.check()
    assert fix in (caught.value.hint or "")


async def test_a_schema_of_the_future_is_refused(store: Store) -> None:
    await store.ensure_meta()
    await store._commands.ask("HSET", keys.META, "oldest_reader", "2")
    with pytest.raises(StoreUnfit, match="Update this program"):
        await store.check()


@pytest.mark.parametrize("version", ["6.2.14", "5.0", "0", "6"])
def test_old_versions_are_refused(version: str) -> None:
    """No such server is at hand: the judgement is a function of what INFO answers."""
    with pytest.raises(StoreUnfit, match=r"7\.0"):
        check_info({"redis_version": version, "aof_enabled": 1, "maxmemory_policy": "noeviction"}, {})


@pytest.mark.parametrize("version", ["7.0.15", "7.2.4", "8.0", "10.1.0"])
def test_newer_versions_pass(version: str) -> None:
    check_info({"redis_version": version, "aof_enabled": 1, "maxmemory_policy": "noeviction", "role": "master"}, {})


async def test_a_replica_is_no_store(own_store: Servers) -> None:
    server = own_store()
    server.command("REPLICAOF", "127.0.0.1", "1")
    async with await connect(server.settings()) as store:
        with pytest.raises(StoreUnavailable, match="primary"):
            await store.check()
        with pytest.raises(StoreUnavailable, match="primary"):
            await store.put(ChangeKind.INTENT, "n", NodeIntent(node="n", generation=1))


async def test_passwords_come_from_a_private_file_and_stay_out_of_messages(own_store: Servers, tmp_path) -> None:
    server = own_store(password='pass"w\\ord')
    secret = tmp_path / "password"
    write_secret(secret, b'pass"w\\ord\n')
    async with await connect(server.settings(password_file=secret)) as store:
        await store.check()
    async with await connect(server.settings()) as store:
        with pytest.raises(StoreUnfit, match="password_file"):
            await store.revision()
    write_secret(secret, b"wrong")
    async with await connect(server.settings(password_file=secret)) as store:
        with pytest.raises(StoreUnfit, match="password_file"):
            await store.revision()
    async with await connect(StoreSettings(url="redis://user:hunter2@127.0.0.1:1/0")) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.revision()
    assert "hunter2" not in str(caught.value)
    # Nobody on the machine can read it off the process list.
    assert 'pass"w' not in " ".join(psutil.Process(server.pid).cmdline())


async def test_an_impossible_address_is_refused() -> None:
    with pytest.raises(StoreUnfit, match="redis://"):
        await connect(StoreSettings(url="http://127.0.0.1"))


async def test_a_frozen_server_costs_one_timeout(own_store: Servers) -> None:
    """M10: redis-py's own defaults held a call for 12 s."""
    server = own_store()
    async with await connect(server.settings(socket_timeout_seconds=0.4, lease_timeout_seconds=0.2)) as store:
        await persistently(lambda: store.put(ChangeKind.INTENT, "n", NodeIntent(node="n", generation=1)))
        server.freeze()
        calls = [
            store.revision(),
            store.get(ChangeKind.INTENT, "n"),
            store.put(ChangeKind.INTENT, "n", NodeIntent(node="n", generation=2)),
            store.acquire_lease("a", 10),
            store.read_events(),
            store.check(),
        ]
        began = time.monotonic()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 10
        assert all(isinstance(answer, StoreUnavailable) for answer in answers), answers
        server.thaw()
        assert await persistently(lambda: store.get(ChangeKind.NODE, "n")) is None


async def test_a_late_answer_never_reaches_the_next_caller(own_store: Servers) -> None:
    """A call that was given up leaves a reply under way: its connection must go with it."""
    server = own_store()
    async with await connect(server.settings(socket_timeout_seconds=0.1, max_connections=2)) as store:
        for number in range(20):
            server.command("SET", f"key-{number}", f"value-{number}")
        for number in range(20):
            if number % 4 == 0:
                server.freeze()
                with pytest.raises(StoreUnavailable):
                    await store._commands.ask("GET", f"key-{number}")
                with pytest.raises(StoreUnavailable):
                    await store._commands.ask_all([["GET", f"key-{number}"], ["GET", "other"]], atomic=True)
                server.thaw()
            else:
                cancelled = asyncio.create_task(store._commands.ask("GET", f"key-{number}"))
                await asyncio.sleep(0)
                cancelled.cancel()
                await asyncio.gather(cancelled, return_exceptions=True)
            wanted = (number + 7) % 20
            found = await persistently(lambda wanted=wanted: store._commands.ask("GET", f"key-{wanted}"))
            assert found == f"value-{wanted}"


async def test_nothing_durable_is_lost_by_kill_9(own_store: Servers) -> None:
    """M9: with AOF 1000 of 1000 survive the process."""
    server = own_store()
    async with await connect(server.settings()) as store:
        incarnation = await store.ensure_meta()
        await asyncio.gather(
            *(store.put(ChangeKind.INTENT, f"n{n}", NodeIntent(node=f"n{n}", generation=1)) for n in range(300))
        )
        epoch = await store.acquire_lease("a", 30)
        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.revision()
        server.start()
        # The first call after the restart may find its pooled connection dead, the next must not.
        assert await persistently(store.revision) == 300
        assert len(await store.get_all(ChangeKind.INTENT)) == 300
        assert await store.ensure_meta() == incarnation
        # The scripts are forgotten by a new process; the epoch is not.
        assert await store.put(ChangeKind.INTENT, "new", NodeIntent(node="new", generation=1)) == 301
        await store._commands.ask("DEL", keys.LEASE)
        assert epoch is not None
        assert await store.acquire_lease("b", 10) == epoch + 1


async def test_long_waits_do_not_hold_up_short_calls(store_server: StoreServer) -> None:
    async with await connect(store_server.settings(max_connections=4)) as store:
        waits = [asyncio.create_task(store.read_logs("r", block_ms=60_000)) for _ in range(30)]
        async with asyncio.timeout(20):
            for _ in range(10):
                assert await store.revision() == 0
                assert await store.leader() is None
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
