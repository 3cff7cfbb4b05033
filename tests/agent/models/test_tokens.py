"""Which endpoints get the agent's token for a hub: not those where everybody on the way could read it."""

import pytest

from nebula_agent.adapters import model_place, model_places
from nebula_agent.adapters.model_place import FetchFailed
from nebula_agent.adapters.model_places import open_place
from nebula_agent.decisions.model_files import Listing, RemoteFile
from nebula_agent.decisions.policy import LocalPolicy, may_have_token
from tests.agent.models.conftest import source_of
from tests.support.hub import COMMIT

TOKEN = "hf_secret"
NAMED = LocalPolicy(clear_token_hosts=("mirror.lan", "*.trusted.lan"))


@pytest.mark.parametrize(
    ("endpoint", "policy", "sent"),
    [
        ("https://huggingface.co", LocalPolicy(), True),
        ("HTTPS://mirror.lan", LocalPolicy(), True),
        ("http://127.0.0.1:8080", LocalPolicy(), True),
        ("http://127.8.9.1", LocalPolicy(), True),
        ("http://[::1]:80", LocalPolicy(), True),
        ("http://localhost/hub", LocalPolicy(), True),
        ("http://huggingface.co", LocalPolicy(), False),
        ("http://mirror.lan", LocalPolicy(), False),
        ("http://10.0.0.1", LocalPolicy(), False),
        ("http://0.0.0.0", LocalPolicy(), False),
        ("http://localhost.evil.example", LocalPolicy(), False),
        ("http://127.0.0.1.evil.example", LocalPolicy(), False),
        ("http://127.0.0.1@evil.example", LocalPolicy(), False),
        ("http://2130706433", LocalPolicy(), False),
        ("ftp://mirror", LocalPolicy(), False),
        ("mirror", LocalPolicy(), False),
        ("", LocalPolicy(), False),
        ("http://MIRROR.lan:8080", NAMED, True),
        ("http://a.trusted.lan", NAMED, True),
        ("http://mirror.lan.evil.example", NAMED, False),
        ("http://huggingface.co", NAMED, False),
    ],
)
def test_an_endpoint_in_the_clear_gets_it_only_on_loopback_or_by_name(endpoint, policy, sent):
    assert may_have_token(policy, endpoint) is sent


@pytest.fixture
def elsewhere(hub, monkeypatch):
    """The hub as a machine across the network: the only thing that differs is that its address is not called loopback."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(
        model_places,
        "may_have_token",
        lambda policy, endpoint: may_have_token(policy, endpoint.replace("127.0.0.1", "mirror.lan")),
    )
    return hub


@pytest.mark.parametrize("text", ["team/small", "modelscope:team/small"])
@pytest.mark.parametrize(("policy", "sent"), [(LocalPolicy(), None), (NAMED, f"Bearer {TOKEN}")])
def test_no_request_carries_it_there(elsewhere, text, policy, sent):
    place = open_place(source_of(text), policy, elsewhere.env | {"MODELSCOPE_API_TOKEN": TOKEN})
    try:
        listing = place.listing()
        with place.open(listing, RemoteFile("config.json", None), 0) as body:
            assert b"".join(body) == elsewhere.files["team/small"]["config.json"]
    finally:
        place.close()
    assert elsewhere.tokens == [sent, sent]


@pytest.mark.parametrize("location", ["http://[::1/x", "https://cdn.example:99999/x", "ftp://cdn.example/x", ""])
def test_a_redirect_to_no_address_is_said_so(hub, location):
    hub.redirects["config.json"] = location
    place = open_place(source_of("team/small"), LocalPolicy(), hub.env)
    try:
        said = "redirected" if not location else "is no address of a hub|Invalid URL"
        with (
            pytest.raises(FetchFailed, match=said),
            place.open(Listing(COMMIT, ()), RemoteFile("config.json", None), 0),
        ):
            pass
    finally:
        place.close()


def test_a_hub_that_wants_it_is_told_of_with_the_way_out(elsewhere):
    elsewhere.token = TOKEN
    place = open_place(source_of("team/small"), LocalPolicy(), elsewhere.env)
    try:
        with pytest.raises(FetchFailed, match="none is sent over plain http") as failed:
            place.listing()
        assert failed.value.final
        assert "clear_token_hosts" in failed.value.hint
        with (
            pytest.raises(FetchFailed, match="none is sent over plain http"),
            place.open(Listing(COMMIT, ()), RemoteFile("config.json", None), 0),
        ):
            pass
    finally:
        place.close()


LOGIN = "reader:s3cret-of-the-mirror"


@pytest.mark.parametrize("text", ["team/gone", "modelscope:team/gone"])
@pytest.mark.parametrize("address", ["http://{}@127.0.0.1:1", "http://{}@{}", "ftp://{}@mirror"])
def test_a_login_in_an_address_is_shown_to_nobody(hub, text, address):
    """As people write it into HF_ENDPOINT for a mirror of theirs; what is said of a failure goes to the store."""
    endpoint = address.format(LOGIN, hub.url.removeprefix("http://"))
    env = {"HF_ENDPOINT": endpoint, "MODELSCOPE_ENDPOINT": endpoint}
    place = open_place(source_of(text), LocalPolicy(model_hosts=("127.0.0.1",)), env)
    with pytest.raises(FetchFailed) as failed:
        place.listing()
    place.close()
    assert "s3cret" not in f"{failed.value} {failed.value.hint}"


def test_words_of_others_lose_the_logins_of_addresses():
    said = f"404 for url 'https://{LOGIN}@mirror/x', and http://b@c:1/d; mail a@b"
    assert model_place.without_login(said) == "404 for url 'https://mirror/x', and http://c:1/d; mail a@b"
    assert model_place.host_of(f"https://{LOGIN}@mirror:8443/x") == "mirror:8443"
