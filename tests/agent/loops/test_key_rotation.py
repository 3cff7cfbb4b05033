"""The signing key is changed while engines run (reliability, row 46): two keys overlap, then the old one is taken away."""

from nebula_core.records.replica import Phase
from nebula_core.security.envelope import SigningKey
from tests.support.agent import eventually


async def restarted(cluster, agent, *keys):
    cluster.verify_keys.write_text("".join(f"{key.public_base64}\n" for key in keys))
    assert agent.stop() == 0
    agent.start()
    await cluster.returned(agent)


async def refusals(cluster):
    return [problem.message for problem in (await cluster.report()).problems if problem.code == "placement_refused"]


async def test_two_keys_overlap_and_the_old_one_ends_without_an_engine_lost(cluster):
    old, new = cluster.signing, SigningKey.generate()
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    first = await cluster.until(Phase.READY)

    await restarted(cluster, agent, old, new)
    await cluster.place(cluster.placement("chat-r2"))
    cluster.signing = new
    await cluster.place(cluster.placement("chat-r3"))
    for replica in ("chat-r2", "chat-r3"):
        await cluster.until(Phase.READY, replica)
    # The leader signs the first one anew.
    await cluster.place(cluster.placement())
    assert await refusals(cluster) == []

    await restarted(cluster, agent, new)
    cluster.signing = old
    await cluster.place(cluster.placement("chat-r4"))

    async def both():
        found = await refusals(cluster)
        return found if len(found) == 2 else None

    # What only the old key signed is no order any more; that its engine runs is not undone by that.
    messages = " ".join(await eventually(both, "both are named"))
    assert "chat-r2" in messages
    assert "chat-r4" in messages
    assert "unknown key" in messages
    assert await cluster.status("chat-r4") is None
    for replica in ("chat-r1", "chat-r2", "chat-r3"):
        assert (await cluster.until(Phase.READY, replica)).restarts == 0
    last = await cluster.until(Phase.READY)
    assert (last.pid, last.engine_epoch) == (first.pid, first.engine_epoch)
