"""Strategies of other packages: used where they are sound, named and left out where not."""

import sys
from pathlib import Path

import pytest

from nebula_proxy.adapters.strategy_plugins import load_strategies
from nebula_proxy.checking import checks
from nebula_proxy.decisions.strategies import BUILT_IN
from nebula_proxy.settings import ProxySettings
from nebula_proxy.traffic.plane import Routing
from tests.support.data_plane import endpoint, model, running_plane
from tests.support.scripted_engine import ScriptedEngine

MODULE = """
def quiet(ask, weighed):
    return [float(len(row.replica)) for row in weighed.field.rows]

def wrong(ask):
    return []

def fails(ask, weighed):
    raise RuntimeError("never")

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs entry points as a package manager would: a folder of metadata on the path."""

    def install(*entries: str) -> None:
        (tmp_path / "some_routing.py").write_text(MODULE)
        info = tmp_path / "some_routing-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-routing\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[nebula.routing_strategies]", *entries]) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.modules.pop("some_routing", None)


def test_without_plug_ins_there_are_the_built_in_ones() -> None:
    found = load_strategies()
    assert found.by_name is BUILT_IN
    assert not found.broken


def test_broken_ones_are_named_and_left_out(package) -> None:
    package(
        "quiet = some_routing:quiet",
        "wrong = some_routing:wrong",
        "number = some_routing:number",
        "absent = some_routing:absent",
        "gone = no_such_module_at_all:x",
        "least_pending = some_routing:quiet",
        "bad name! = some_routing:quiet",
    )
    found = load_strategies()
    assert set(found.by_name) == {*BUILT_IN, "quiet"}
    assert found.found == {"quiet": "some_routing:quiet"}
    assert {name.split(" (")[0]: words.split(":")[0] for name, words in found.broken.items()} == {
        "wrong": "it must take (ask, weighed)",
        "number": "it is no function but a int",
        "absent": "it cannot be imported",
        "gone": "it cannot be imported",
        "least_pending": "there is one of that name already; rename it",
        "bad name!": "its name may hold letters, digits, `.`, `_` and `-` only",
    }


async def test_a_plug_in_is_asked_for_by_header_and_its_failure_falls_back(package) -> None:
    package("quiet = some_routing:quiet", "fails = some_routing:fails")
    found = load_strategies()
    async with ScriptedEngine() as engine:
        view = model(endpoint("m-r100", engine.port), endpoint("m-r2", engine.port))
        async with running_plane(view, routing=Routing(found.by_name)) as running, running.client() as client:

            async def ask(strategy: str) -> dict[str, str]:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                answer = await client.post("/v1/chat/completions", json=body, headers={"x-nebula-strategy": strategy})
                return dict(answer.headers)

            first = await ask("quiet")
            assert first["x-nebula-replica"] == "m-r2"
            assert first["x-nebula-decision"].startswith("quiet; lowest")
            second = await ask("fails")
            assert second["x-nebula-decision"].startswith("least_pending; fallback")
            third = await ask("nonsense")
            assert "x-nebula-replica" not in third


async def test_check_lists_them_and_names_what_is_broken(package, store_url: str) -> None:
    package("quiet = some_routing:quiet", "gone = no_such_module_at_all:x")

    async def line(**routing: object) -> tuple[bool, str]:
        settings = ProxySettings.model_validate(
            {"store": {"url": store_url}, "port": 0, "control": {"port": 0}, "routing": routing}
        )
        found = next(result for result in await checks(settings) if result.name == "strategies")
        return found.good, found.text

    good, text = await line()
    assert not good
    assert "gone (no_such_module_at_all:x): it cannot be imported" in text
    good, text = await line(default_strategy="fastest")
    assert not good
    assert "there is no 'fastest'" in text
