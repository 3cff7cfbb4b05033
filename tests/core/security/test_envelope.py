"""A writable store is not command over a machine: nothing but the very placement that was signed is ever obeyed."""

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.errors import SettingsError, SignatureRefused
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.security.envelope import DOMAIN, SigningKey, VerifyKeys, key_id_of, sign_placement, verify_placement
from tests.support.records import a_placement

KEY = SigningKey.generate()
NEXT_KEY = SigningKey.generate()
STRANGER = SigningKey.generate()
KEYS = VerifyKeys([KEY.public, NEXT_KEY.public])
PLACEMENT = a_placement(epoch=3, revision=40, node="n1")
SIGNED = sign_placement(KEY, PLACEMENT)


def refused(signed: SignedPlacement, **how: object) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify_placement(KEYS, signed, **({"node": "n1", "not_before": (0, 0)} | how))  # type: ignore[arg-type]
    return caught.value.message


def test_what_was_signed_is_obeyed_again_and_again() -> None:
    for not_before in [(0, 0), (3, 39), (3, 40)]:
        assert verify_placement(KEYS, SIGNED, node="n1", not_before=not_before, replica="chat-r1") == PLACEMENT


def test_it_survives_the_store() -> None:
    assert verify_placement(KEYS, SignedPlacement.from_json(SIGNED.to_json()), node="n1") == PLACEMENT


def test_both_keys_are_valid_while_they_rotate() -> None:
    assert verify_placement(KEYS, sign_placement(NEXT_KEY, PLACEMENT), node="n1") == PLACEMENT
    assert "unknown key" in refused(sign_placement(STRANGER, PLACEMENT))


def test_a_stranger_who_names_our_key_is_refused() -> None:
    forged = sign_placement(STRANGER, PLACEMENT).model_copy(update={"key_id": KEY.key_id})
    assert "does not belong" in refused(forged)


def test_another_node_and_another_replica_refuse_it() -> None:
    assert "made for node 'n1'" in refused(SIGNED, node="n2")
    assert "stored as 'chat-r2'" in refused(SIGNED, replica="chat-r2")


@pytest.mark.parametrize("obeyed", [(3, 41), (4, 0), (4, 40), (9, 9)])
def test_an_older_one_is_refused(obeyed: tuple[int, int]) -> None:
    assert "older" in refused(SIGNED, not_before=obeyed)


def test_what_the_key_signs_elsewhere_is_no_placement() -> None:
    """Domain separation: the same bytes signed without the domain line prove nothing."""
    payload = PLACEMENT.to_json()
    for message in (payload.encode(), b"nebula placement v2\n" + payload.encode(), DOMAIN + b"\n" + payload.encode()):
        signature = base64.b64encode(KEY.sign(message)).decode()
        refused(SignedPlacement(payload=payload, key_id=KEY.key_id, signature=signature))


def test_a_signed_thing_that_is_no_placement_is_refused() -> None:
    for payload in ("", "{}", "[]", "null", '{"replica":"../../etc"}'):
        signature = base64.b64encode(KEY.sign(DOMAIN + payload.encode())).decode()
        assert "cannot be read" in refused(SignedPlacement(payload=payload, key_id=KEY.key_id, signature=signature))


def test_every_single_bit_counts() -> None:
    """Threat T1: all one-bit flips of the signature and of the payload."""
    signature = base64.b64decode(SIGNED.signature)
    for bit in range(len(signature) * 8):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(SIGNED.model_copy(update={"signature": base64.b64encode(flipped).decode()}))
    payload = SIGNED.payload.encode()
    for bit in range(len(payload) * 8):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        refused(SIGNED.model_copy(update={"payload": changed.decode("latin-1")}))


def test_ten_thousand_forgeries() -> None:
    """Threat T1: mutated, spliced, re-ordered, foreign; none may pass."""
    dice = random.Random(1)
    others = [sign_placement(KEY, a_placement(f"chat-r{n}", node=f"n{n % 5}", epoch=n)) for n in range(20)]
    fields = json.loads(SIGNED.payload)
    accepted = 0
    for _ in range(10_000):
        other = dice.choice(others)
        match dice.randrange(6):
            case 0:
                forged = SIGNED.model_copy(update={"signature": other.signature})
            case 1:
                forged = SIGNED.model_copy(update={"payload": other.payload})
            case 2:
                name = dice.choice(list(fields))
                value = dice.choice([None, 0, 99, "x", True, [], "n2", "privileged"])
                forged = SIGNED.model_copy(update={"payload": json.dumps(fields | {name: value})})
            case 3:
                forged = SIGNED.model_copy(update={"signature": base64.b64encode(dice.randbytes(64)).decode()})
            case 4:
                text = dice.choice(
                    ["", "=", "A", SIGNED.signature[:-1], SIGNED.signature + "=", SIGNED.signature + "\n"]
                )
                forged = SIGNED.model_copy(update={"signature": text})
            case _:
                forged = SIGNED.model_copy(
                    update={"key_id": dice.choice(["", NEXT_KEY.key_id, "0" * 16, KEY.key_id.upper()])}
                )
        if forged == SIGNED:
            continue
        try:
            verify_placement(KEYS, forged, node="n1")
        except SignatureRefused:
            continue
        accepted += 1
    assert accepted == 0


@given(st.text(), st.text(), st.text())
def test_garbage_is_refused_with_a_reason(payload: str, key_id: str, signature: str) -> None:
    assert refused(SignedPlacement(payload=payload, key_id=key_id, signature=signature))
    assert refused(SignedPlacement(payload=payload, key_id=KEY.key_id, signature=signature))


def test_lone_surrogates_are_refused() -> None:
    refused(SignedPlacement.model_construct(payload="\ud800", key_id=KEY.key_id, signature=SIGNED.signature))
    refused(SIGNED.model_copy(update={"signature": "\ud800"}))


@given(
    node=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    epoch=st.integers(0, 2**40),
    revision=st.integers(0, 2**40),
    obeyed=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    here=st.sampled_from(["n1", "x"]),
)
def test_it_is_obeyed_exactly_when_it_is_for_us_and_not_older(
    node: str, epoch: int, revision: int, obeyed: tuple[int, int], here: str
) -> None:
    placement = a_placement(node=node, epoch=epoch, revision=revision)
    signed = sign_placement(KEY, placement)
    try:
        found: Placement | None = verify_placement(KEYS, signed, node=here, not_before=obeyed)
    except SignatureRefused:
        found = None
    assert (found == placement) is (node == here and (epoch, revision) >= obeyed)


def test_keys_are_kept_in_private_files(tmp_path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).key_id == KEY.key_id == key_id_of(KEY.public)
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        SigningKey.load(path)
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(SettingsError, match="no private key"):
        SigningKey.load(path)
    with pytest.raises(SettingsError, match="cannot read"):
        SigningKey.load(tmp_path / "none")


def test_verify_keys_come_from_a_file_or_a_directory(tmp_path) -> None:
    one = tmp_path / "one.pub"
    one.write_text(f"# the control plane\n{KEY.public_base64}  # since May\n\n")
    (tmp_path / "two.pub").write_text(NEXT_KEY.public_base64)
    assert VerifyKeys.load(one).key_ids == {KEY.key_id}
    assert VerifyKeys.load(tmp_path).key_ids == {KEY.key_id, NEXT_KEY.key_id}
    for wrong in ("not base64!", "AAAA", KEY.public_base64[:-4]):
        one.write_text(wrong)
        with pytest.raises(SettingsError, match="is not a public key"):
            VerifyKeys.load(one)
    with pytest.raises(SettingsError, match="cannot read"):
        VerifyKeys.load(tmp_path / "none")
