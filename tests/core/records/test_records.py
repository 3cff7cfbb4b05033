"""Records travel as JSON without loss, ignore what they do not know, and keep their names in shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nebula_core.records.access import ApiKey, Principal, Role
from nebula_core.records.base import Record, frozen_map, revised
from nebula_core.records.compact import NodeDelta, ReplicaDelta, RoutingDelta
from nebula_core.records.deployment import Autoscale, Deployment, DeploymentSpec
from nebula_core.records.event import Audit, Change, ChangeKind, Event
from nebula_core.records.ids import DeploymentName, NodeName, ReplicaId, RequestId, replica_id, replica_ordinal
from nebula_core.records.node import DrainIntent, NodeIntent
from nebula_core.records.replica import OCCUPYING, STARTING, TRANSITIONS, Phase, may_move
from nebula_core.records.sample import EngineSample, GpuSample, HostSample
from tests.support.records import a_placement, a_proxy_report, a_report, a_status

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBER = st.none() | st.floats(0, 1e12)
SAMPLES = st.builds(
    EngineSample,
    requests_running=st.none() | st.integers(0, 1000),
    kv_cache_usage=NUMBER,
    generation_tokens_total=NUMBER,
    missing=st.lists(TEXT, max_size=2).map(tuple),
)
SPECS = st.builds(
    DeploymentSpec,
    source=TEXT.filter(bool),
    replicas=st.integers(0, 100),
    gpus=st.integers(0, 16),
    gpu_memory_bytes=st.none() | st.integers(0, 2**40),
    args=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True),
        st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        max_size=4,
    ),
    autoscale=st.none() | st.builds(Autoscale, min=st.integers(0, 2), max=st.integers(2, 5)),
)
RECORDS = st.one_of(
    st.builds(
        Deployment,
        name=st.just("chat"),
        generation=st.integers(1, 9),
        spec=SPECS,
        history=st.lists(SPECS, max_size=2).map(tuple),
    ),
    SPECS.map(lambda spec: a_placement(spec=spec)),
    st.builds(
        NodeIntent, node=st.just("n1"), drain=st.none() | st.builds(DrainIntent, by=TEXT, since=st.floats(0, 1e10))
    ),
    SAMPLES.map(lambda sample: a_report(replicas=(a_status(sample=sample, phase_reason="x"),))),
    st.builds(GpuSample, gpu=st.just("GPU-1"), index=st.integers(0, 9), power_watts=NUMBER, fault=st.none() | TEXT),
    st.dictionaries(TEXT, st.integers(1, 99), max_size=3).map(lambda open_: a_proxy_report(inflight=open_)),
    st.builds(Event, kind=TEXT, object=TEXT, message=TEXT, actor=TEXT, at=st.floats(0, 1e10)),
    st.builds(
        Audit,
        stage=st.sampled_from(["intent", "result"]),
        call=TEXT,
        actor=TEXT,
        role=TEXT,
        object=TEXT,
        request_id=TEXT,
        at=st.floats(0, 1e10),
        detail=st.dictionaries(TEXT, st.integers(-(2**53), 2**53) | TEXT | st.lists(TEXT, max_size=2), max_size=3),
    ),
    st.builds(Change, revision=st.integers(0), kind=st.sampled_from(ChangeKind), id=TEXT, value=st.none() | TEXT),
    st.builds(
        ApiKey,
        id=TEXT,
        name=TEXT,
        role=st.sampled_from(Role),
        secret_sha256=TEXT,
        models=st.none() | st.lists(TEXT, max_size=2).map(tuple),
        created_at=st.floats(0, 1e10),
        created_by=TEXT,
    ),
)


DELTAS = st.builds(
    NodeDelta,
    node=st.just("n1"),
    sequence=st.integers(0, 2**53),
    gpus=st.lists(st.tuples(NUMBER, st.none() | st.integers(0, 2**53), NUMBER, NUMBER), max_size=3).map(tuple),
    replicas=st.lists(
        st.builds(ReplicaDelta, id=TEXT, phase=st.just("ready"), kv=NUMBER, waiting=st.none() | st.integers(0, 99)),
        max_size=2,
    ).map(tuple),
)


@given(DELTAS)
def test_compact_records_arrive_and_proxies_read_their_part(delta: NodeDelta) -> None:
    raw = delta.to_json()
    assert NodeDelta.from_json(raw) == NodeDelta.from_json(raw.encode()) == delta
    grown = raw[:-1] + ',"of_the_future":{"a":[1]}}'
    assert NodeDelta.from_json(grown) == delta
    part = RoutingDelta.from_json(grown)
    assert (part.node, part.sequence, part.replicas) == (delta.node, delta.sequence, delta.replicas)


@given(TEXT)
def test_what_is_no_compact_record_says_so(text: str) -> None:
    for kind in (NodeDelta, RoutingDelta):
        with pytest.raises(ValueError, match=r"."):
            kind.from_json(text)


@given(RECORDS)
def test_what_travels_arrives(record: Record) -> None:
    raw = record.to_json()
    assert type(record).from_json(raw) == record
    assert type(record).from_json(raw.encode()).to_json() == raw


@given(RECORDS)
def test_fields_of_the_future_are_ignored(record: Record) -> None:
    raw = record.to_json()
    grown = raw[:-1] + ("," if len(raw) > 2 else "") + '"of_the_future":{"a":[1]}}'
    assert type(record).from_json(grown) == record


@given(RECORDS)
def test_a_revised_record_is_like_pydantics_own_copy(record: Record) -> None:
    name, old = next(iter(record))
    for update in ({}, {name: old}, {name: "other"}):
        copy = revised(record, update)
        assert copy == record.model_copy(update=update)
        assert copy.model_fields_set == record.model_copy(update=update).model_fields_set
    assert revised(record, {}).to_json() == record.to_json()


def test_unknown_is_none_and_costs_nothing() -> None:
    assert HostSample().to_json() == "{}"
    assert EngineSample(requests_running=0).to_json() == '{"requests_running":0}'


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        a_status().phase = Phase.FAILED  # type: ignore[misc]
    with pytest.raises(TypeError):
        frozen_map({"a": 1})["a"] = 2  # type: ignore[index]


def test_a_broken_record_does_not_repeat_its_content() -> None:
    with pytest.raises(ValidationError) as caught:
        Deployment.from_json('{"name":"hunter2 hunter2","generation":"hunter2"}')
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [NodeName, DeploymentName, ReplicaId, RequestId])
@pytest.mark.parametrize(
    "name",
    ["", "a/b", "../x", "a b", "a\n", "\n", "a\x1b[0m", "é", "x" * 200, "a\u202eb", "-", ".", "..", "a:b", "a%2fb"],
)
def test_names_break_no_path_key_or_line(kind: object, name: str) -> None:
    if kind is RequestId and name in {"-", ".", ".."}:
        return
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(name)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), st.integers(0, 10**6))
def test_ordinals_come_back(deployment: str, ordinal: int) -> None:
    assert replica_ordinal(deployment, replica_id(deployment, ordinal)) == ordinal
    assert replica_ordinal(deployment + "x", replica_id(deployment, ordinal)) is None


@pytest.mark.parametrize(
    "name", ["chat-r", "chat-rx", "chat-r-1", "chat-r1x", "chat", "chat-r²", "chat-r١", "chat-r01"]
)
def test_ids_of_another_shape_have_no_ordinal(name: str) -> None:
    assert replica_ordinal("chat", name) is None


def test_the_phase_table_is_whole_and_leads_somewhere() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for phase in set(Phase) - {Phase.LOST}:
        # Every reported phase can be stopped, fails into something that can be tried again, and stays when told.
        assert may_move(phase, phase)
        reachable = {phase}
        while more := {after for one in reachable for after in TRANSITIONS[one]} - reachable:
            reachable |= more
        assert {Phase.READY, Phase.STOPPED, Phase.PENDING} <= reachable
        assert Phase.LOST not in reachable
    assert not TRANSITIONS[Phase.LOST]
    assert STARTING < OCCUPYING
    assert Phase.STOPPED not in OCCUPYING
    assert Phase.FAILED not in OCCUPYING
    assert may_move(Phase.PENDING, Phase.PULLING)
    assert not may_move(Phase.PENDING, Phase.READY)
    assert not may_move(Phase.STOPPED, Phase.READY)


@pytest.mark.parametrize("name", ["--flag", "a b", "a;b", "", "a=b", "$x"])
def test_engine_options_are_names(name: str) -> None:
    with pytest.raises(ValidationError, match="not an option name"):
        DeploymentSpec(source="m", args={name: 1})


def test_autoscale_bounds_are_ordered() -> None:
    with pytest.raises(ValidationError, match=r"above autoscale\.max"):
        Autoscale(min=3, max=2)


def test_a_principal_keeps_to_its_models() -> None:
    nobody = Principal(name="n", role=Role.CLIENT, key_id="k", models=())
    assert not nobody.may_use("chat")
    assert nobody.model_copy(update={"models": None}).may_use("chat")
