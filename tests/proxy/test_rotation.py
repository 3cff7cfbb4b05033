"""The steps of changing the signing key, on the files alone; with replicas running it is tests/faults/test_key_rotation.py."""

from pathlib import Path

import pytest

from nebula_core.errors import SettingsError
from nebula_core.security.envelope import SigningKey, VerifyKeys
from nebula_proxy.installing import finish_rotation, install, prepare_rotation, switch_rotation


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    install(tmp_path)
    return tmp_path / "keys"


def known(keys: Path) -> frozenset[str]:
    return VerifyKeys.load(keys / "verify.keys").key_ids


def present(keys: Path) -> str:
    return SigningKey.load(keys / "signing.key").key_id


def test_steps_may_be_repeated_and_the_former_key_is_known_until_the_last(keys: Path) -> None:
    former = present(keys)
    for _ in range(2):
        prepare_rotation(keys)
    assert present(keys) == former
    switch_rotation(keys)
    assert known(keys) == {former, present(keys)}
    with pytest.raises(SettingsError, match=r"signing\.next\.key"):
        switch_rotation(keys)
    for _ in range(2):
        finish_rotation(keys, {})
    assert known(keys) == {present(keys)} != {former}


def test_a_remark_behind_the_former_key_does_not_keep_it(keys: Path) -> None:
    verify = keys / "verify.keys"
    former = verify.read_text().strip()
    verify.write_text(f"# our keys\n{former}  # 2025, of the old control host\n")
    prepare_rotation(keys)
    switch_rotation(keys)
    finish_rotation(keys, {})
    assert known(keys) == {present(keys)}
    assert verify.read_text().startswith("# our keys\n")


def test_nothing_is_forgotten_while_something_needs_it(keys: Path) -> None:
    prepare_rotation(keys)
    switch_rotation(keys)
    before = known(keys)
    with pytest.raises(SettingsError, match="chat-r1"):
        finish_rotation(keys, {"chat-r1": "signed by unknown key"})
    assert known(keys) == before
