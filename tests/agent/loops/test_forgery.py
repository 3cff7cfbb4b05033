"""Ten thousand orders that must not be obeyed, half placements, half commands, through the loops that obey (GOALS R10).

Each is a valid, freshly signed order that was damaged in one way: bits, bytes, cuts, other keys, another key's id, the
signature of another order, a command that poses as a placement and the other way round, another node, another replica,
an older epoch or revision, a life too long, too late, too early, a copy of what was done. The loops keep what they did:
nothing of this may be in it.
"""

import base64
import json
import random

import pytest

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.node_files import NodeFiles
from nebula_agent.loops.commands import CommandLoop, Outcome
from nebula_agent.loops.context import Problems
from nebula_core.records.command import Command, SignedCommand
from nebula_core.records.placement import SignedPlacement, Wanted
from nebula_core.security.commands import sign_command
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement
from tests.agent.loops.test_obedience import Desk
from tests.support.clock import FakeClock
from tests.support.records import a_placement

COUNT = 5_000
STRANGER = SigningKey.generate()


def flipped(rng, text):
    at = rng.randrange(len(text))
    return text[:at] + chr(ord(text[at]) ^ (1 << rng.randrange(7))) + text[at + 1 :]


def cut(rng, text):
    return text[: rng.randrange(len(text))]


def doubled(rng, text):
    at = rng.randrange(len(text))
    return text[:at] + text[at] + text[at:]


def edited(rng, payload):
    """Another order in the same words: what an attacker wants, under a signature that was made for this one."""
    said = json.loads(payload)
    name = rng.choice(sorted(said))
    said[name] = rng.choice(["/", "n1", 10**9, None, {}, ["-v", "/:/host"], f"{said[name]}x"])
    return json.dumps(said, separators=(",", ":"))


def signature_bits(rng, signature):
    raw = bytearray(base64.b64decode(signature))
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return base64.b64encode(bytes(raw)).decode()


def damaged(rng, signed, other):
    """One of the ways in which the bytes of a signed record can be wrong; `other` is a valid one of something else."""
    payload, key_id, signature = signed.payload, signed.key_id, signed.signature
    match rng.randrange(9):
        case 0:
            payload = flipped(rng, payload)
        case 1:
            payload = edited(rng, payload)
        case 2:
            payload = rng.choice([cut, doubled])(rng, payload)
        case 3:
            signature = signature_bits(rng, signature)
        case 4:
            signature = rng.choice([cut, doubled, flipped])(rng, signature)
        case 5:
            key_id = rng.choice([STRANGER.key_id, "", "0" * len(key_id), flipped(rng, key_id)])
        case 6:
            signature = other.signature
        case 7:
            payload = other.payload
        case 8:
            payload = rng.choice([payload + " ", " " + payload, payload.replace(":", ": ", 1)])
    return signed.model_copy(update={"payload": payload, "key_id": key_id, "signature": signature})


@pytest.mark.parametrize("seed", [1])
async def test_no_placement_that_is_forged_replayed_outdated_or_misdirected_is_obeyed(tmp_path, store, seed):
    rng = random.Random(seed)
    desk = Desk(tmp_path, store)
    good = [a_placement(f"chat-r{n}", epoch=5, revision=100 + n) for n in range(1, 5)]
    for placement in good:
        await desk.tell((placement.replica, desk.signed(placement)))
    obeyed = list(desk.owners.obeyed)
    assert obeyed == good
    command = Command(id="a" * 8, node="n1", kind="image.pull", issued_at=0.0, expires_at=60.0)
    posing = sign_command(desk.key, command)
    refused = 0
    for number in range(COUNT):
        replica = f"chat-r{rng.randrange(1, 9)}"
        order = a_placement(replica, epoch=6, revision=1000 + number, wanted=rng.choice(list(Wanted)))
        stored_as = replica
        match rng.randrange(12):
            case 0:
                entry = sign_placement(STRANGER, order)
            case 1:
                entry = sign_placement(STRANGER, order).model_copy(update={"key_id": desk.key.key_id})
            case 2:
                entry = sign_placement(desk.key, order.model_copy(update={"node": rng.choice(["n2", "N1", "n1x"])}))
            case 3:
                stored_as = f"chat-r{rng.randrange(10, 99)}"
                entry = sign_placement(desk.key, order)
            case 4:
                # A well signed order of the past: of a replica that is known, and of one that never was.
                past = {"epoch": rng.randrange(1, 5), "revision": rng.randrange(1, 10_000)}
                entry = sign_placement(desk.key, order.model_copy(update=past))
            case 5:
                known = rng.choice(good)
                stored_as = known.replica
                earlier = {"revision": rng.randrange(1, known.revision), "wanted": Wanted.STOP}
                entry = sign_placement(desk.key, known.model_copy(update=earlier))
            case 6:
                entry = SignedPlacement(payload=posing.payload, key_id=posing.key_id, signature=posing.signature)
            case 7:
                await desk.tell(
                    (
                        stored_as,
                        rng.choice(
                            ["", "{}", "null", "[]", "x", '{"payload":1}', "\ud83d".encode("utf-8", "replace").decode()]
                        ),
                    )
                )
                refused += 1
                continue
            case _:
                signed = sign_placement(desk.key, order)
                entry = damaged(rng, signed, sign_placement(desk.key, rng.choice(good)))
                if entry == signed:
                    continue
        await desk.tell((stored_as, entry.to_json()))
        refused += 1
    # What is valid already may be read again: that obeys nothing new.
    assert [placement for placement in desk.owners.obeyed if placement not in good] == []
    assert desk.owners.obeyed == obeyed
    assert desk.owners.forgotten == []
    assert desk.files.orders().max_epoch == 5
    assert refused > COUNT * 0.95
    assert desk.problems.all()
    desk.files.close()
    await desk.watcher.stop()


@pytest.mark.parametrize("seed", [2])
async def test_no_command_that_is_forged_replayed_expired_or_misdirected_is_carried_out(tmp_path, store, seed):
    rng = random.Random(seed)
    key, clock, done = SigningKey.generate(), FakeClock(), []
    files = NodeFiles(tmp_path)
    files.open()

    async def pull(command, _tell):
        done.append(command.id)
        return Outcome("done")

    loop = CommandLoop(
        node="n1",
        store=store,
        keys=VerifyKeys([key.public]),
        files=files,
        clock=clock,
        problems=Problems(),
        handlers={"image.pull": pull},
        disk=DiskThreads("test"),
    )
    loop._cursor = "0-0"  # it waits already: what comes now is not the heap of before it started

    def command(name, **changes):
        now = clock.wall()
        values = {"id": name, "node": "n1", "kind": "image.pull", "issued_at": now, "expires_at": now + 60}
        return Command.model_validate(values | changes)

    good = [sign_command(key, command(f"good{n:08}")) for n in range(4)]
    for signed in good:
        await loop._take(signed, old=False)
    await loop.finished()
    assert sorted(done) == [f"good{n:08}" for n in range(4)]
    posing = sign_placement(key, a_placement())
    for number in range(COUNT):
        name, now = f"bad{number:09}", clock.wall()
        match rng.randrange(12):
            case 0:
                entry = sign_command(STRANGER, command(name))
            case 1:
                entry = sign_command(STRANGER, command(name)).model_copy(update={"key_id": key.key_id})
            case 2:
                entry = sign_command(key, command(name, node=rng.choice(["n2", "n10", "n1.x"])))
            case 3:
                age = rng.uniform(91, 10**7)
                entry = sign_command(key, command(name, issued_at=now - age, expires_at=now - age + 60))
            case 4:
                ahead = rng.uniform(31, 10**7)
                entry = sign_command(key, command(name, issued_at=now + ahead, expires_at=now + ahead + 60))
            case 5:
                entry = sign_command(key, command(name, expires_at=now + rng.uniform(60.1, 10**9)))
            case 6:
                entry = rng.choice(good)
            case 7:
                entry = SignedCommand(payload=posing.payload, key_id=posing.key_id, signature=posing.signature)
            case 8:
                entry = sign_command(key, command(name, kind=rng.choice(["image.prunes", "shell.run", "host.reboot"])))
            case _:
                signed = sign_command(key, command(name))
                entry = damaged(rng, signed, rng.choice(good))
                if entry == signed:
                    continue
        await loop._take(entry, old=rng.random() < 0.1)
    await loop.finished()
    assert len(done) == 4
    await loop.close()
    files.close()
