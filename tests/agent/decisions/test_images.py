"""Names of images, who may run, which serves what, how far a pull is, and what may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.adapters.catalog_file import read_catalog
from nebula_agent.decisions.catalog import CatalogEntry, entry_for, hardware_of, repositories
from nebula_agent.decisions.images import LocalImage, find_local, known_size, unused, why_not_it
from nebula_agent.decisions.policy import LocalPolicy, why_image_refused
from nebula_agent.decisions.pull import PullProgress, describe_pull_failure, is_final, why_no_room
from nebula_agent.decisions.runtime_choice import choose_runtime
from nebula_core.errors import SettingsError
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.image_ref import ImageRef, parse_image

D1, D2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("busybox", ("docker.io", "library/busybox", "latest", None)),
        ("vllm/vllm-openai:v0.32.0", ("docker.io", "vllm/vllm-openai", "v0.32.0", None)),
        ("localhost/x", ("localhost", "x", "latest", None)),
        ("127.0.0.1:5000/a/b:c", ("127.0.0.1:5000", "a/b", "c", None)),
        (f"ghcr.io/a/b@{D1}", ("ghcr.io", "a/b", None, D1)),
        (f"a/b:t@{D1}", ("docker.io", "a/b", "t", D1)),
        ("index.docker.io/a/b:t", ("docker.io", "a/b", "t", None)),
    ],
)
def test_a_name_has_one_form(text, parts):
    found = parse_image(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts
    assert parse_image(found.text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "A/b",
        "a b",
        "-x",
        "a//b",
        "a:",
        "a@sha256:xyz",
        f"a@{D1.upper()}",
        "../a",
        "a\n",
        "a;rm",
        "x" * 600,
        "a:t:t",
    ],
)
def test_what_is_no_name(text):
    assert parse_image(text) is None


@given(st.text(max_size=60))
def test_reading_a_name_never_fails_and_is_stable(text):
    found = parse_image(text)
    assert found is None or parse_image(found.text) == found


@pytest.mark.parametrize(
    ("entry", "image", "allowed"),
    [
        ("docker.io/vllm", "vllm/vllm-openai:v1", True),
        ("vllm/vllm-openai", "vllm/vllm-openai:v1", True),
        ("vllm/vllm-openai", "vllm/vllm-openai-evil:v1", False),
        ("vllm/vllm-openai:v1", "vllm/vllm-openai:v2", False),
        ("ghcr.io", "ghcr.io/a/b:c", True),
        ("ghcr.io", "ghcr.io.evil.com/a/b:c", False),
        ("127.0.0.1:5000", "127.0.0.1:5000/a:b", True),
        ("docker.io/library", "busybox", True),
        (f"vllm/vllm-openai@{D1}", f"vllm/vllm-openai:v1@{D1}", True),
        (f"vllm/vllm-openai@{D1}", "vllm/vllm-openai:v1", False),
        (f"vllm/vllm-openai@{D1}", f"vllm/vllm-openai:v1@{D2}", False),
        (D1, f"any/where@{D1}", True),
        (D1, "any/where:v1", False),
        ("not a name!", "any/where:v1", False),
    ],
)
def test_which_images_a_policy_allows(entry, image, allowed):
    reason = why_image_refused(LocalPolicy(images=(entry,)), parse_image(image), ())
    assert (reason is None) is allowed
    assert allowed or "add it to `images`" in reason


def test_without_a_word_in_the_policy_the_catalog_decides():
    known = repositories(read_catalog(None))
    assert why_image_refused(LocalPolicy(), parse_image("vllm/vllm-openai:v9"), known) is None
    assert "not of the catalog" in why_image_refused(LocalPolicy(), parse_image("evil/miner"), known)
    assert why_image_refused(LocalPolicy(images=()), parse_image("vllm/vllm-openai:v9"), known) is not None


def spec(**changes):
    return DeploymentSpec.model_validate({"source": "Qwen/x", "engine": "vllm"} | changes)


def test_the_catalog_serves_every_engine_on_its_hardware():
    catalog = read_catalog(None)
    for engine, hardware in (
        *(("vllm", one) for one in ("nvidia", "huawei", "amd", "cpu")),
        *(("sglang", one) for one in ("nvidia", "huawei", "amd")),
        *(("llamacpp", one) for one in ("nvidia", "amd", "cpu")),
        ("xllm", "huawei"),
    ):
        assert isinstance(entry_for(catalog, spec(engine=engine), hardware), CatalogEntry), (engine, hardware)
    assert "vllm-ascend" in entry_for(catalog, spec(), "huawei").image
    assert "no image of sglang for cpu" in entry_for(catalog, spec(engine="sglang"), "cpu")


def test_an_operators_entry_stands_first_and_may_name_a_model(tmp_path):
    file = tmp_path / "catalog.toml"
    file.write_text(
        '[[image]]\nengine = "vllm"\nmodel = "deepseek-ai/*"\nimage = "ghcr.io/us/vllm:ds"\nprogram = "vllm"\n'
    )
    catalog = read_catalog(file)
    assert entry_for(catalog, spec(source="deepseek-ai/V4"), "nvidia").image == "ghcr.io/us/vllm:ds"
    assert entry_for(catalog, spec(), "nvidia").image.startswith("docker.io/vllm/")
    named = entry_for(catalog, spec(image=f"ghcr.io/us/vllm@{D1}"), "nvidia")
    assert (named.program, named.version) == ("vllm", None)
    other = entry_for(catalog, spec(image="docker.io/vllm/vllm-openai:v0.9.1"), "nvidia")
    assert (other.version, other.size_bytes) == (None, None)
    assert "no name of an image" in entry_for(catalog, spec(image="; rm"), "nvidia")
    for text, said in (
        ("x = 1", "unknown name 'x'"),
        ("[[image]]\nengine = 'vllm'\nimg = 'x'", "unknown name 'img'"),
        ("[[", "no TOML"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=said):
            read_catalog(file)
    with pytest.raises(SettingsError, match="cannot read"):
        read_catalog(tmp_path / "none")


def test_hardware_is_that_of_the_gpus():
    assert hardware_of(["nvidia"], gpus=1) == "nvidia"
    assert hardware_of(["ascend"], gpus=1) == "huawei"
    assert hardware_of(["nvidia"], gpus=0) == hardware_of([], gpus=2) == "cpu"


@pytest.mark.parametrize(
    ("changes", "runtimes", "program_set", "program_found", "has_image", "chosen"),
    [
        ({}, ("process", "docker"), False, True, True, "docker"),
        ({}, ("process", "docker"), True, True, True, "process"),
        ({}, ("process", "docker"), False, True, False, "process"),
        ({}, ("process", "docker"), False, False, False, "docker"),
        ({}, ("process",), False, True, True, "process"),
        ({"image": "a/b:c"}, ("process", "docker"), True, True, True, "docker"),
        ({"engine": "simulated"}, ("process", "docker"), False, True, True, "process"),
        ({"runtime": "docker"}, ("process",), False, True, True, "docker"),
        ({"runtime": "process", "image": "a/b:c"}, ("process", "docker"), False, True, True, "process"),
        ({"engine": "external", "source": "http://h:1"}, ("process", "docker"), False, False, False, "external"),
    ],
)
def test_how_a_replica_is_run(changes, runtimes, program_set, program_found, has_image, chosen):
    found = choose_runtime(
        spec(**changes), runtimes, program_set=program_set, program_found=program_found, has_image=has_image
    )
    assert found == chosen


# --- pulls


def message(layer, status, current=None, total=None):
    detail = {} if current is None else {"current": current, "total": total}
    return {"id": layer, "status": status, "progressDetail": detail}


def test_a_pull_from_its_first_layer_to_its_last():
    progress = PullProgress()
    assert progress.words() == "asking the registry"
    for one in (
        {"status": "Pulling from team/x", "id": "1"},
        message("a", "Pulling fs layer"),
        message("b", "Pulling fs layer"),
        message("a", "Downloading", 512 * 1024, 1024**2),
    ):
        progress = progress.heard(one)
    assert progress.words() == "20 % (0.5 of 1.0 MiB)"
    progress = progress.heard(message("b", "Downloading", 0, 3 * 1024**2)).heard(message("a", "Download complete"))
    assert (progress.total_bytes, progress.missing_bytes) == (4 * 1024**2, 3 * 1024**2)
    for one in (
        message("b", "Extracting", 3 * 1024**2, 3 * 1024**2),
        message("a", "Pull complete"),
        message("b", "Pull complete"),
    ):
        progress = progress.heard(one)
    assert progress.words() == "100 % (4.0 of 4.0 MiB)"


statuses = [
    "Downloading",
    "Extracting",
    "Download complete",
    "Pull complete",
    "Already exists",
    "Pulling fs layer",
    "Waiting",
    "New word",
]


@given(
    st.lists(
        st.builds(
            message,
            st.sampled_from("abc"),
            st.sampled_from(statuses),
            st.none() | st.integers(-5, 100),
            st.none() | st.integers(-5, 100),
        ),
        max_size=30,
    )
)
def test_progress_only_rises_and_stays_below_all(messages):
    progress, last = PullProgress(), 0.0
    for one in messages:
        progress = progress.heard(one)
        assert progress.ratio is None or last <= progress.ratio <= 1.0
        last = progress.ratio or last
        assert progress.missing_bytes >= 0
        assert progress.words()
    for odd in ({}, {"id": 1, "status": "Downloading"}, {"id": "a", "status": None}):
        assert progress.heard(odd) == progress


def test_room_is_asked_for_with_a_margin():
    assert why_no_room(100, 120, "x") is None
    assert why_no_room(101, 120, "x") is not None
    assert why_no_room(None, 1, "x") is None
    assert why_no_room(10**12, None, "x") is None


@pytest.mark.parametrize(
    ("said", "meaning", "final"),
    [
        ("unauthorized: authentication required", "docker login", True),
        ("manifest for x:1 not found: manifest unknown: manifest unknown", "no such image", True),
        ("dial tcp: lookup reg on 1.1.1.1:53: no such host", "not reachable", False),
        ("toomanyrequests: You have reached your pull rate limit", "limits how much", False),
        ("write /var/lib/docker: no space left on device", "disk of Docker is full", True),
        ("unexpected EOF", "broke off", False),
        ("x509: certificate signed by unknown authority", "certificate", False),
        ("received unexpected HTTP status: 403 Forbidden", "docker login", False),
        ("unexpected status code 401: gone", "docker login", False),
        ("error parsing HTTP 404 response body", "no such image", False),
        ("received unexpected HTTP status: 429", "limits how much", False),
        # A status is no part of a port, an address or a name.
        ('Get "http://127.0.0.1:44013/v2/": dial tcp 127.0.0.1:44013: connect: refused', "not reachable", False),
        ('Get "http://reg:401/v2/team-404/429": dial tcp 10.4.0.1:401: i/o timeout', "not reachable", False),
        ("something new", "something new", False),
    ],
)
def test_what_a_failed_pull_means(said, meaning, final):
    assert meaning in describe_pull_failure(said)
    assert is_final(said) is final


# --- what is here

HERE = LocalImage(id=D2, tags=("x:1",), digests=(f"x@{D1}",), size_bytes=5)


def test_the_image_that_is_meant():
    assert find_local([HERE], parse_image("x:1")) == HERE
    assert find_local([HERE], parse_image("x:2")) is None
    assert find_local([HERE], parse_image(f"x@{D1}")) == HERE
    assert HERE.digest_of("docker.io/library/x") == D1
    assert why_not_it(HERE, parse_image(f"x:1@{D1}")) is None
    assert "the tag was moved" in why_not_it(HERE, parse_image(f"x:1@{D2}"))
    assert "there is no" in why_not_it(None, ImageRef("r", "x", "1"))
    assert known_size([HERE], parse_image("x:9"), None) == 5
    assert known_size([HERE], parse_image("y:9"), None) is None
    assert known_size([HERE], parse_image("x:9"), 7) == 7


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_nothing_in_use_or_pinned_is_ever_pruned(here, used, pinned):
    images = [LocalImage(id=f"id{n}", digests=(f"x@sha256:{n}",), size_bytes=n) for n in here]
    gone = unused(images, in_use={f"id{n}" for n in used}, pinned={f"sha256:{n}" for n in pinned})
    assert {image.id for image in gone} == {f"id{n}" for n in here - used - pinned}
