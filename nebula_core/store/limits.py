"""Limits of keys over all workers and proxies: budgets in the store, leased to workers in slices.

A request must not wait for the store, so each worker keeps a slice of a key's budget and spends it by itself. The
budget is a bucket: it holds a minute's worth and is refilled evenly. For every key the script keeps

    bucket + slices of all workers  <=  limit

so over any T seconds all workers together spend at most limit * (1 + T / 60) as long as the store answers. A slice that
is not used goes back; one whose worker died is forgotten when its lease ends, unspent or not: never too much, for a
moment too little. Streams are slots instead of a bucket: the sum of all leased slots is at most the limit.
"""

from collections.abc import Sequence

from nebula_core.records.lease import Claim, Slice
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line, Script

_LEASE = Script("lease_limits")


class Limits:
    _limits: Line

    async def lease_limits(self, worker: str, claims: Sequence[Claim], lease_seconds: float) -> list[Slice]:
        """Settles what was spent, gives back what is not wanted, renews and grants; one slice for each claim.

        Safe to repeat. The lease counts from when the store has answered: the worker counts from when it asked.
        """
        if not claims:
            return []
        arguments: list[Argument] = [worker, max(1, round(lease_seconds * 1000))]
        for claim in claims:
            limits = (claim.requests.limit, claim.tokens.limit, claim.stream_limit)
            arguments += [0 if limit is None else limit for limit in limits]
            arguments += [*claim.requests[1:], *claim.tokens[1:], claim.open_streams, claim.wanted_streams]
        replies = await self._limits.run(_LEASE, [keys.limits(claim.key) for claim in claims], arguments)
        return [Slice(*map(int, reply)) for reply in replies]
