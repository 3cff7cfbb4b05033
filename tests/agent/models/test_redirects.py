"""Where a token may follow a redirect."""

import pytest

from nebula_agent.adapters.model_places import _same_origin


@pytest.mark.parametrize(
    ("url", "following", "same"),
    [
        ("https://hub.example/a", "https://hub.example/b", True),
        ("http://hub.example/a", "http://hub.example/b", True),
        ("http://hub.example/a", "https://hub.example/a", True),
        ("https://hub.example/a", "http://hub.example/a", False),  # a token in the clear
        ("https://hub.example/a", "https://cdn.example/a", False),
        ("https://hub.example/a", "https://hub.example:8443/a", False),
        ("https://hub.example/a", "https://hub.example@cdn.example/a", False),
    ],
)
def test_a_token_stays_with_its_host_and_is_not_sent_in_the_clear(url, following, same):
    assert _same_origin(url, following) is same
