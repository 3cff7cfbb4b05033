"""Sealed values open for one key pair, in one place, unaltered; secret files are private or refused."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.errors import SettingsError, SignatureRefused
from nebula_core.security.files import read_secret, write_secret
from nebula_core.security.sealing import SealingKeyPair, seal, unseal

PAIR = SealingKeyPair.generate()
OTHER = SealingKeyPair.generate()


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_what_is_sealed_opens_in_its_place(plaintext: bytes, context: bytes) -> None:
    assert unseal(PAIR, seal(PAIR.public, plaintext, context=context), context=context) == plaintext


def test_each_box_is_different() -> None:
    assert len({seal(PAIR.public, b"same", context=b"c") for _ in range(50)}) == 50


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_another_place_does_not_open_it(context: bytes, elsewhere: bytes) -> None:
    sealed = seal(PAIR.public, b"key", context=context)
    if context != elsewhere:
        with pytest.raises(SignatureRefused):
            unseal(PAIR, sealed, context=elsewhere)


def test_another_pair_does_not_open_it() -> None:
    with pytest.raises(SignatureRefused):
        unseal(OTHER, seal(PAIR.public, b"key", context=b"chat-r1|e1"), context=b"chat-r1|e1")


def test_every_single_bit_counts() -> None:
    raw = base64.b64decode(seal(PAIR.public, b"key", context=b"c"))
    opened = 0
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            unseal(PAIR, base64.b64encode(changed).decode(), context=b"c")
        except SignatureRefused:
            continue
        opened += 1
    assert opened == 0


@given(st.text(max_size=200))
def test_garbage_does_not_open(sealed: str) -> None:
    with pytest.raises(SignatureRefused):
        unseal(PAIR, sealed, context=b"")


def test_a_degenerate_sender_does_not_open() -> None:
    with pytest.raises(SignatureRefused):
        unseal(PAIR, base64.b64encode(bytes(64)).decode(), context=b"")


def test_the_pair_is_kept_in_a_private_file(tmp_path) -> None:
    path = tmp_path / "sealing.pem"
    PAIR.save(path)
    assert SealingKeyPair.load(path).public == PAIR.public
    assert path.stat().st_mode & 0o777 == 0o600


def test_secret_files_are_written_whole(tmp_path) -> None:
    path = tmp_path / "deep" / "secret"
    umask = os.umask(0)
    try:
        write_secret(path, b"one")
        write_secret(path, b"two")
    finally:
        os.umask(umask)
    assert read_secret(path) == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


def test_a_secret_replaces_a_link_instead_of_following_it(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path = tmp_path / "secret"
    path.symlink_to(victim)
    write_secret(path, b"mine")
    assert victim.read_text() == "untouched"
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_secret_that_others_may_touch_is_refused(tmp_path, mode: int) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"x")
    path.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_secret(path)


def test_a_secret_must_be_a_file(tmp_path) -> None:
    with pytest.raises(SettingsError):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SettingsError, match="not a plain file"):
        read_secret(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="Check the path"):
        read_secret(tmp_path / "none")
