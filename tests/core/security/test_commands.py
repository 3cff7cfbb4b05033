"""Commands: obeyed for a minute, by one node, and by nobody who only copies, changes or keeps them."""

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.errors import SignatureRefused
from nebula_core.records.command import Command, SignedCommand
from nebula_core.security.commands import COMMAND_DOMAIN, CommandOutdated, sign_command, verify_command
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement
from tests.support.records import a_placement

KEY = SigningKey.generate()
KEYS = VerifyKeys([KEY.public])
NOW = 1_000_000.0


def a_command(**changes):
    values = {"id": "0" * 24, "node": "n1", "kind": "image.pull", "issued_at": NOW, "expires_at": NOW + 60}
    return Command.model_validate(values | changes)


def refused(signed, *, node="n1", now=NOW):
    with pytest.raises(SignatureRefused) as caught:
        verify_command(KEYS, signed, node=node, now=now)
    return caught.value


@given(
    age=st.integers(-200 * 8, 200 * 8),
    life=st.integers(-10 * 8, 120 * 8),
    node=st.sampled_from(["n1", "n2"]),
)
def test_it_is_obeyed_exactly_when_it_is_ours_and_of_now(age, life, node):
    age, life = age / 8, life / 8  # sums of eighths are exact, also at the limits
    command = a_command(expires_at=NOW + life, node=node)
    try:
        found = verify_command(KEYS, sign_command(KEY, command), node="n1", now=NOW + age)
    except SignatureRefused:
        found = None
    in_time = -30 <= age <= life + 30
    assert (found == command) is (node == "n1" and 0 < command.expires_at - NOW <= 60 and in_time)


def test_an_outdated_one_says_so_and_names_the_clocks():
    signed = sign_command(KEY, a_command())
    for now, said in ((NOW + 91, "ended 31 s ago"), (NOW - 31, "31 s in the future")):
        error = refused(signed, now=now)
        assert isinstance(error, CommandOutdated)
        assert said in error.message
        assert "clocks" in error.hint
        assert error.command.id == "0" * 24


def test_a_placement_is_no_command_and_the_other_way_round():
    placement = sign_placement(KEY, a_placement())
    assert "does not belong" in refused(SignedCommand.model_validate(placement.model_dump())).message
    payload = a_command().to_json()
    for message in (payload.encode(), b"nebula placement v1\n" + payload.encode(), COMMAND_DOMAIN + b"\n"):
        signature = base64.b64encode(KEY.sign(message)).decode()
        refused(SignedCommand(payload=payload, key_id=KEY.key_id, signature=signature))


def test_ten_thousand_forgeries():
    """Threat T1: mutated, spliced, foreign, misdirected and old ones; none may pass."""
    dice = random.Random(7)
    stranger = SigningKey.generate()
    good = sign_command(KEY, a_command())
    others = [sign_command(KEY, a_command(id=f"{n:024}", node=f"n{n % 4 + 2}")) for n in range(20)]
    fields = json.loads(good.payload)
    accepted = 0
    for _ in range(10_000):
        now = NOW
        match dice.randrange(6):
            case 0:
                forged = good.model_copy(update={"signature": dice.choice(others).signature})
            case 1:
                value = dice.choice(["x.y", "n9", 0, None, NOW * 2, {}])
                forged = good.model_copy(
                    update={"payload": json.dumps(fields | {dice.choice(list(fields)): value, "by": "root"})}
                )
            case 2:
                forged = sign_command(stranger, a_command()).model_copy(update={"key_id": KEY.key_id})
            case 3:
                forged = dice.choice(others)
            case 4:
                forged, now = good, NOW + dice.choice([-1, 1]) * dice.uniform(100, 1e6)
            case _:
                flipped = bytearray(base64.b64decode(good.signature))
                flipped[dice.randrange(64)] ^= 1 << dice.randrange(8)
                forged = good.model_copy(update={"signature": base64.b64encode(flipped).decode()})
        try:
            verify_command(KEYS, forged, node="n1", now=now)
        except SignatureRefused:
            continue
        accepted += 1
    assert accepted == 0


@given(st.text(), st.text(), st.text())
def test_garbage_is_refused_with_a_reason(payload, key_id, signature):
    assert refused(SignedCommand(payload=payload, key_id=key_id, signature=signature)).message
    assert refused(SignedCommand(payload=payload, key_id=KEY.key_id, signature=signature)).message
