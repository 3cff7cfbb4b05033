"""What an agent leaves in the journal: one JSON line per event, named by `action`, and no secret in any of them."""

import json

from nebula_core.records.replica import Phase


async def test_every_line_from_start_to_stop_is_an_event_and_none_tells_a_secret(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    status = await cluster.until(Phase.READY)
    secret = cluster.key_of(status)
    assert agent.stop() == 0
    lines = agent.log.splitlines()
    actions = [json.loads(line)["action"] for line in lines]
    assert {"agent_started", "placement_obeyed", "agent_leaving"} <= set(actions)
    assert secret not in agent.log
    assert status.endpoint.sealed_key not in agent.log
