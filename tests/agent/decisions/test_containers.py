"""Containers: whatever an order says, the body stays within the policy; and whose container is whose."""

from posixpath import normpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_agent.decisions import containers as labels
from nebula_agent.decisions.container import (
    CACHE,
    FORBIDDEN_ENV,
    SECRETS,
    UNGRANTABLE,
    ContainerHost,
    ContainerOrder,
    ContainerSettings,
    GpuShare,
    Mount,
    Refusal,
    container_body,
)
from nebula_agent.decisions.containers import Container, ContainerState, read_labels, sort_containers
from nebula_agent.decisions.policy import LocalPolicy

ID = "sha256:" + "a" * 64
HOST = ContainerHost(memory_bytes=64 * 1024**3, raises_limits=True, gpu_mode="nvidia", port_range=(20000, 20099))
POLICY = LocalPolicy(mounts=("/models", "/srv/hub"), environment=("MY_FLAG",), capabilities=("SYS_NICE",))


def an_order(**changes):
    values = {
        "image_id": ID,
        "argv": ("vllm", "serve", "/models/a"),
        "env": {"VLLM_NO_USAGE_STATS": "1"},
        "passed_env": {},
        "host": "10.0.0.1",
        "port": 20000,
        "mounts": (Mount("/models/a", "/models/a", "/models/a"),),
        "secrets": (Mount("/var/lib/nebula/c/k", "/var/lib/nebula/c/k", f"{SECRETS}/engine.yaml"),),
        "cache": Mount("/var/lib/nebula/cache", "/var/lib/nebula/cache", CACHE, read_only=False),
        "gpus": GpuShare("nvidia", ("GPU-1", "GPU-2"), (0, 1)),
        "labels": {"nebula.replica": "chat-r1"},
        "stop_seconds": 10.0,
    }
    return ContainerOrder(**(values | changes))


def body(order=None, settings_=None, policy=POLICY, host=HOST):
    return container_body(order or an_order(), settings_ or ContainerSettings(), policy, host)


def refused(**how):
    found = body(**how)
    assert isinstance(found, Refusal), found
    return found.reason


def test_the_body_of_an_ordinary_start():
    found = body()
    host = found["HostConfig"]
    assert found["Image"] == ID
    assert (found["Entrypoint"], found["Cmd"]) == (["vllm"], ["serve", "/models/a"])
    assert host["PortBindings"] == {"20000/tcp": [{"HostIp": "10.0.0.1", "HostPort": "20000"}]}
    assert host["Binds"] == [
        "/models/a:/models/a:ro",
        f"/var/lib/nebula/c/k:{SECRETS}/engine.yaml:ro",
        f"/var/lib/nebula/cache:{CACHE}:rw",
    ]
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-1", "GPU-2"]
    assert (host["Init"], host["Privileged"], host["CapDrop"], host["CapAdd"]) == (True, False, ["ALL"], [])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["Memory"] == host["MemorySwap"] == 64 * 1024**3 * 9 // 10
    assert host["Ulimits"] == [{"Name": "memlock", "Soft": -1, "Hard": -1}]
    assert host["LogConfig"]["Config"] == {"max-size": str(64 * 1024**2), "max-file": "2"}


def test_what_a_node_cannot_do_is_left_out_or_refused():
    assert body(host=ContainerHost(port_range=(1, 65535), gpu_mode="cdi"))["HostConfig"]["DeviceRequests"] == [
        {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]}
    ]
    bare = ContainerHost(port_range=(20000, 20000))
    assert "NVIDIA container toolkit" in refused(host=bare)
    found = body(an_order(gpus=GpuShare()), host=bare)
    assert (found["HostConfig"]["Ulimits"], "Memory" in found["HostConfig"]) == ([], False)
    ascend = body(an_order(gpus=GpuShare("ascend", ("npu-3",), (3,))))
    assert ascend["HostConfig"]["Devices"][0]["PathOnHost"] == "/dev/davinci3"
    assert "cannot be given" in refused(order=an_order(gpus=GpuShare("acme", ("x",), (0,))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": "vllm/vllm-openai:latest"}, "not named by its id"),
        ({"port": 80}, "not of this node's range"),
        ({"argv": ()}, "command line"),
        ({"mounts": (Mount("/models/a", "/etc", "/models/a"),)}, "/etc is never given"),
        ({"mounts": (Mount("/models/a", "/opt/x/a", "/models/a"),)}, "where /models/a leads"),
        ({"mounts": (Mount("/modelsx", "/modelsx", "/modelsx"),)}, "under none of `mounts`"),
        ({"mounts": (Mount("/models/../etc", "/models/a", "/m"),)}, "cannot be mounted"),
        ({"mounts": (Mount("/models/a:rw", "/models/a", "/m"),)}, "cannot be mounted"),
        ({"mounts": (Mount("/models/a", "/models/a", "/m", read_only=False),)}, "writable"),
        ({"mounts": (Mount("/", "/", "/m"),)}, "never given"),
        ({"secrets": (Mount("/x", "/x", "/etc/passwd"),)}, "secret"),
        ({"cache": Mount("/x", "/x", "/etc", read_only=False)}, "cache"),
        ({"env": {"LD_PRELOAD": "x"}}, "LD_PRELOAD is never"),
        ({"env": {"VLLM_API_KEY": "x"}}, "VLLM_API_KEY is never"),
        ({"env": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "NVIDIA_VISIBLE_DEVICES is never"),
        ({"env": {"A B": "x"}}, "cannot be handed on"),
        ({"env": {"A": "x\nB=y"}}, "cannot be handed on"),
        ({"passed_env": {"OTHER": "1"}}, "not among `environment`"),
    ],
)
def test_what_is_refused_says_why(changes, said):
    assert said in refused(order=an_order(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "host"}, "host_network"),
        ({"network": "container:other"}, "no network"),
        ({"host_ipc": True}, "host_ipc"),
        ({"capabilities": ("SYS_ADMIN",)}, "never given"),
        ({"capabilities": ("CAP_SYS_ADMIN",)}, "never given"),
        ({"capabilities": ("IPC_LOCK",)}, "not among `capabilities`"),
    ],
)
def test_settings_stay_below_the_policy(changes, said):
    assert said in refused(settings_=ContainerSettings(**changes))


def test_what_the_policy_allows_is_given():
    policy = POLICY.model_copy(
        update={"host_network": True, "host_ipc": True, "max_memory_bytes": 10**9, "max_pids": 99}
    )
    found = body(settings_=ContainerSettings(network="host", host_ipc=True, capabilities=("SYS_NICE",)), policy=policy)
    host = found["HostConfig"]
    assert (host["NetworkMode"], host["IpcMode"], host["CapAdd"]) == ("host", "host", ["SYS_NICE"])
    assert (host["Memory"], host["PidsLimit"], found["ExposedPorts"]) == (10**9, 99, {})
    assert "PortBindings" not in host


words = st.text(st.characters(codec="ascii", exclude_characters="\r"), max_size=12)
paths = st.one_of(
    st.sampled_from(
        ["/", "/etc", "/models", "/models/a", "/models/../etc", "/srv/hub/b", "/proc/1/root", "/dev/kmem", "a", ""]
    ),
    words.map(lambda text: f"/models/{text}"),
    words,
)
mounts = st.builds(Mount, paths, paths, paths, st.booleans())
names = st.one_of(
    st.sampled_from(["LD_PRELOAD", "PYTHONPATH", "NVIDIA_VISIBLE_DEVICES", "MY_FLAG", "HF_TOKEN", "PATH", "VLLM_X"]),
    words,
)
environments = st.dictionaries(names, words, max_size=3)
orders = st.builds(
    ContainerOrder,
    image_id=st.sampled_from([ID, ID.upper(), "x:latest", ID + "\n"]),
    argv=st.lists(words, max_size=3).map(tuple),
    env=environments,
    passed_env=environments,
    host=st.sampled_from(["10.0.0.1", "127.0.0.1"]),
    port=st.integers(-1, 70000),
    mounts=st.lists(mounts, max_size=2).map(tuple),
    secrets=st.lists(mounts, max_size=1).map(tuple),
    cache=st.none() | mounts,
    gpus=st.builds(GpuShare, st.sampled_from(["nvidia", "ascend", "amd", "x"]), st.just(("GPU-1",)), st.just((0,))),
    labels=st.dictionaries(words, words, max_size=2),
    stop_seconds=st.floats(0, 100),
)
wishes = st.builds(
    ContainerSettings,
    network=st.sampled_from(["bridge", "host", "container:x", ""]),
    shm_bytes=st.integers(1, 2**40),
    memory_bytes=st.none() | st.integers(1, 2**40),
    pids=st.integers(1, 10**6),
    capabilities=st.lists(st.sampled_from(["SYS_NICE", "SYS_ADMIN", "ALL", "CAP_BPF", "NET_RAW"]), max_size=2).map(
        tuple
    ),
    host_ipc=st.booleans(),
)
policies = st.builds(
    LocalPolicy,
    mounts=st.sampled_from([None, (), ("/models",), ("/",), ("/models", "/etc")]),
    environment=st.lists(names, max_size=2).map(tuple),
    capabilities=st.sampled_from([(), ("SYS_NICE",), ("SYS_ADMIN", "ALL", "BPF")]),
    host_network=st.booleans(),
    host_ipc=st.booleans(),
    max_memory_bytes=st.none() | st.integers(1, 2**40),
    max_pids=st.none() | st.integers(1, 1000),
)
_FIELDS = {
    *("Image", "Entrypoint", "Cmd", "Env", "Labels", "ExposedPorts", "StopSignal", "StopTimeout", "Tty", "OpenStdin"),
    *("Healthcheck", "HostConfig", "User"),
}
_HOST_FIELDS = {
    *(
        "NetworkMode",
        "IpcMode",
        "Privileged",
        "Init",
        "CapDrop",
        "CapAdd",
        "SecurityOpt",
        "RestartPolicy",
        "AutoRemove",
    ),
    *("PidsLimit", "LogConfig", "Binds", "Devices", "DeviceRequests", "Ulimits", "ShmSize", "Memory", "MemorySwap"),
    "PortBindings",
}


@settings(max_examples=1000)
@given(orders, wishes, policies)
def test_no_body_ever_leaves_the_policy(order, wish, policy):
    """Threat T5: whatever is asked, what reaches the daemon is within what the node allows."""
    found = container_body(order, wish, policy, HOST)
    if isinstance(found, Refusal):
        assert found.reason
        return
    host = found["HostConfig"]
    assert found.keys() <= _FIELDS
    assert host.keys() <= _HOST_FIELDS
    assert found["Image"] == ID
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) <= set(policy.capabilities) - UNGRANTABLE
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["NetworkMode"] != "host" or policy.host_network
    assert host["IpcMode"] == "private" or policy.host_ipc
    assert host["PidsLimit"] <= (policy.max_pids or wish.pids)
    assert policy.max_memory_bytes is None or host["Memory"] <= policy.max_memory_bytes
    for bind in host["Binds"]:
        source, target, mode = bind.rsplit(":", 2)
        assert normpath(source) == source
        if target in (CACHE, SECRETS) or target.startswith(f"{SECRETS}/") or source == "/usr/local/Ascend/driver":
            continue
        assert mode == "ro"
        assert any(
            source == prefix.rstrip("/") or source.startswith(prefix.rstrip("/") + "/")
            for prefix in policy.mount_prefixes
        )
        assert not source.startswith(("/etc", "/proc", "/sys", "/dev", "/run"))
    for line in found["Env"]:
        name = line.partition("=")[0]
        assert not FORBIDDEN_ENV.fullmatch(name)
        assert name in order.env or name in policy.environment
    for bindings in host.get("PortBindings", {}).values():
        assert all(20000 <= int(one["HostPort"]) <= 20099 for one in bindings)


# --- labels


def container(replica="chat-r1", epoch="e1", state=ContainerState.RUNNING, agent="a1", started=1.0, **changes):
    said = {labels.AGENT: agent, labels.REPLICA: replica, labels.EPOCH: epoch, labels.DIGEST: "d", labels.PORT: "20000"}
    values = {"id": f"{replica}/{epoch}", "state": state, "labels": said | changes, "started_at": started}
    return Container.model_validate(values)


def test_labels_are_checked_like_anything_from_outside():
    assert read_labels(container(), "a1").port == 20000
    assert read_labels(container(agent="a2"), "a1") is None
    assert read_labels(container(**{labels.PORT: "x"}), "a1") is None
    assert read_labels(container(replica="../../etc"), "a1") is None
    assert read_labels(Container(id="x", state=ContainerState.RUNNING, labels={labels.AGENT: "a1"}), "a1") is None


def test_a_start_that_was_not_written_down_is_taken_in_and_the_newest_one_of_several():
    found = sort_containers(
        [container(epoch="e1", started=1.0), container(epoch="e2", started=2.0)], "a1", {"chat-r1": None}
    )
    assert found.adopted["chat-r1"].id == "chat-r1/e2"
    assert [one.id for one in found.doubles] == ["chat-r1/e1"]


@given(
    st.lists(
        st.builds(
            container,
            replica=st.sampled_from(["a-r1", "b-r1", "c-r1"]),
            epoch=st.sampled_from(["e1", "e2", "e3"]),
            state=st.sampled_from(list(ContainerState)),
            agent=st.sampled_from(["a1", "a2"]),
            started=st.floats(0, 10),
        ),
        max_size=8,
        unique_by=lambda one: one.id,
    ),
    st.dictionaries(st.sampled_from(["a-r1", "b-r1"]), st.none() | st.sampled_from(["e1", "e2"]), max_size=2),
)
def test_absence_is_no_order(containers, kept):
    found = sort_containers(containers, "a1", kept)
    ours = {one.id for one in containers if one.labels[labels.AGENT] == "a1"}
    sorted_ = [*found.adopted.values(), *found.cleared, *found.doubles, *found.unexplained]
    assert {one.id for one in sorted_} <= ours
    assert len(sorted_) == len({one.id for one in sorted_})
    # What lives and has no order is left alone; what is ended has a start beside it that is kept.
    for one in (*found.cleared, *found.doubles):
        replica = one.labels[labels.REPLICA]
        assert not one.state.alive or kept.get(replica) is not None or replica in found.adopted
        assert kept.get(replica) != one.labels[labels.EPOCH]
    for replica, one in found.adopted.items():
        assert kept[replica] is None
        assert one.state.alive
    for one in found.unexplained:
        assert one.labels[labels.REPLICA] not in kept
