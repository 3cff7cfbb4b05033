"""Tokens: only the right one, unrevoked and in time, is anybody."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.access import ApiKey, Role
from nebula_core.security.credentials import check_token, mint_key, parse_token

TOKEN, KEY = mint_key("ci", Role.OPERATOR, now=100.0, created_by="me", models=("chat",), expires_at=200.0)
OTHER_TOKEN, OTHER = mint_key("other", Role.ADMIN, now=100.0, created_by="me")
KEYS = {KEY.id: KEY, OTHER.id: OTHER}


def test_a_minted_token_is_its_principal() -> None:
    principal = check_token(TOKEN, KEYS, 150.0)
    assert principal is not None
    assert (principal.name, principal.role, principal.key_id) == ("ci", Role.OPERATOR, KEY.id)
    assert principal.may_use("chat")
    assert not principal.may_use("other")
    admin = check_token(OTHER_TOKEN, KEYS, 1e12)
    assert admin is not None
    assert admin.may_use("anything")


def test_the_record_does_not_hold_the_secret() -> None:
    parts = parse_token(TOKEN)
    assert parts is not None
    assert parts[1] not in KEY.to_json()
    assert len({mint_key("n", Role.VIEWER, now=1, created_by="x")[0] for _ in range(200)}) == 200


def test_every_minted_token_parses() -> None:
    for _ in range(300):
        token, key = mint_key("n", Role.CLIENT, now=1, created_by="x")
        parts = parse_token(token)
        assert parts is not None
        assert parts[0] == key.id
        assert check_token(token, {key.id: key}, 2) is not None


def test_expired_revoked_and_unknown_are_nobody() -> None:
    assert check_token(TOKEN, KEYS, 199.9) is not None
    assert check_token(TOKEN, KEYS, 200.0) is None
    assert check_token(TOKEN, {KEY.id: KEY.model_copy(update={"revoked": True})}, 150.0) is None
    assert check_token(TOKEN, {}, 150.0) is None
    # A record under another's id does not lend it its name.
    assert check_token(TOKEN, {KEY.id: OTHER}, 150.0) is None
    assert check_token(OTHER_TOKEN.replace(OTHER.id, KEY.id), KEYS, 150.0) is None
    assert check_token(TOKEN, {KEY.id: KEY.model_copy(update={"secret_sha256": "ä"})}, 150.0) is None
    assert check_token("nbl__", {"": KEY.model_copy(update={"id": ""})}, 150.0) is None


def corpus() -> list[str]:
    """Threat T11/T12: a few thousand tokens that look nearly right."""
    dice = random.Random(11)
    found: list[str] = ["", "nbl", "nbl_", "nbl__", f"nbl_{KEY.id}", f"nbl_{KEY.id}_", "Bearer " + TOKEN, TOKEN + "\n"]
    found += [TOKEN[:cut] for cut in range(len(TOKEN))]
    found += [TOKEN + extra for extra in ("a", "=", " ", "\0", "_x", "\u0661", "é", "\ud800")]
    found += [TOKEN.upper(), TOKEN.title(), TOKEN[::-1], f" {TOKEN}", TOKEN.replace("_", "-", 1), TOKEN * 100]
    for _ in range(3000):
        place = dice.randrange(len(TOKEN))
        letter = dice.choice(string.printable + "éß\u202e\ud800")
        found.append(TOKEN[:place] + letter + TOKEN[place + 1 :])
    return [token for token in found if token != TOKEN]


def test_nothing_nearly_right_is_accepted() -> None:
    assert [token for token in corpus() if check_token(token, KEYS, 150.0) is not None] == []


@given(st.text())
def test_garbage_is_nobody_and_never_raises(token: str) -> None:
    assert check_token(token, KEYS, 150.0) is None
    assert check_token(f"nbl_{KEY.id}_{token}", KEYS, 150.0) is None


@pytest.mark.parametrize("role", list(Role))
def test_roles_include_those_before_them(role: Role) -> None:
    assert role.includes(Role.CLIENT)
    assert Role.ADMIN.includes(role)
    assert role.includes(role)
    assert Role.CLIENT.includes(role) is (role is Role.CLIENT)


def test_a_key_travels_as_json() -> None:
    assert ApiKey.from_json(KEY.to_json()) == KEY
