"""Where engines of others may be reached, what they are, and which of their models is meant."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.external import Address, detect_kind, read_address, which_model, why_refused

LAN = ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("host", "numbers", "allowed", "said"),
    [
        ("10.1.2.3", ["10.1.2.3"], LAN, None),
        ("engine.lan", ["10.1.2.3"], LAN, None),
        ("engine.lan", ["10.1.2.3"], ("engine.lan",), None),
        ("engine.lan", ["10.1.2.3"], ("engine.lan:8000",), None),
        ("engine.lan", ["10.1.2.3"], ("engine.lan:9000",), "does not allow"),
        ("10.1.2.3", ["10.1.2.3"], (), "allows no external engine"),
        ("11.0.0.1", ["11.0.0.1"], LAN, "does not allow"),
        # One number of several is enough to refuse the name.
        ("engine.lan", ["10.1.2.3", "8.8.8.8"], LAN, "8.8.8.8"),
        ("engine.lan", ["169.254.169.254"], ("engine.lan",), "no engine"),
        ("engine.lan", ["::ffff:169.254.169.254"], ("engine.lan",), "no engine"),
        ("engine.lan", ["127.0.0.1"], ("engine.lan",), "resolves to this machine"),
        ("localhost", ["127.0.0.1", "::1"], ("localhost",), None),
        ("127.0.0.1", ["127.0.0.1"], ("127.0.0.1:8000",), None),
        ("engine.lan", ["0.0.0.0"], ("engine.lan",), "no engine"),
        ("engine.lan", [], LAN, "cannot be resolved"),
    ],
)
def test_an_address_is_judged_by_every_number_it_has(host, numbers, allowed, said):
    reason = why_refused(Address(host, 8000), numbers, allowed)
    assert reason is None if said is None else said in reason


@given(st.lists(st.ip_addresses().map(str), min_size=1, max_size=4))
def test_what_no_entry_covers_is_never_reached(numbers):
    covered = all(
        (number := ipaddress.ip_address(text)).version == 4 and number in ipaddress.ip_network("10.0.0.0/8")
        for text in numbers
    )
    reason = why_refused(Address("engine.lan", 8000), numbers, LAN)
    assert covered or reason is not None or any("::ffff:a" in text.lower() for text in numbers)


def test_an_address_is_read():
    assert read_address("http://engine.lan:8000") == Address("engine.lan", 8000)
    assert read_address("http://[fd00::1]:80/").text == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("said", "models", "page", "kind"),
    [
        ("sglang", {}, "vllm:num_requests_running 0", "sglang"),
        ("nonsense", {}, "", "other"),
        (None, {}, '# HELP\nvllm:num_requests_running{engine="0"} 0', "vllm"),
        (None, {}, "sglang_num_running_reqs 0", "sglang"),
        (None, {}, "llamacpp:requests_processing 0", "llamacpp"),
        (None, {"data": [{"id": "a", "owned_by": "vllm"}]}, "", "vllm"),
        (None, {"data": [{"id": "a", "owned_by": "openai"}]}, "http_requests_total 1", "other"),
        (None, {"data": "odd"}, "", "other"),
    ],
)
def test_its_kind_is_told_from_what_it_answers(said, models, page, kind):
    assert detect_kind(said, models, page) == kind


def test_which_of_its_models_is_meant():
    assert which_model("chat", None, ("chat", "other")) == "chat"
    assert which_model("chat", None, ("Qwen/Qwen2.5",)) == "Qwen/Qwen2.5"
    assert which_model("chat", None, ("a", "b")) is None
    assert which_model("chat", "b", ("a", "b")) == "b"
    assert which_model("chat", "c", ("a", "b")) is None
