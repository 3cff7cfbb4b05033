"""One command to several nodes as one operation: who of them can be asked, what it would do, and the sending."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from nebula_core.records.command import CommandArgument, CommandState
from nebula_core.records.report import NodeReport
from nebula_core.records.snapshot import NodeState
from nebula_core.records.views import OperationPart, OperationView
from nebula_proxy.control.actions import Call, Deed, Done
from nebula_proxy.control.answers import record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.refusals import conflict, not_found


@dataclass(frozen=True)
class Ability:
    """What a node must do to be asked, and the words for those that do not."""

    seen: Callable[[NodeReport], bool]
    #: Completes "n1 does not answer, or …".
    lacking: str
    nobody: str
    nobody_hint: str


class NodeOrders:
    def __init__(self, desk: Desk, ability: Ability) -> None:
        self._desk = desk
        self._ability = ability

    def nodes(self, asked: Sequence[str] | None) -> list[str]:
        """Those of `asked`, or without names all, that answer and are able to. Raises CallRefused."""
        view, now = self._desk.watcher.snapshot, self._desk.clock.monotonic()
        able = [
            node
            for node, received in sorted(view.reports.items())
            if self._ability.seen(received.report) and view.node_state(node, now) is NodeState.READY
        ]
        for node in asked or ():
            if node not in view.nodes:
                raise not_found("node", node, view.nodes)
            if node not in able:
                raise conflict(
                    f"{node} does not answer, or {self._ability.lacking}",
                    hint="look at its problems: nebula describe node",
                )
        if not able:
            raise conflict(self._ability.nobody, hint=self._ability.nobody_hint)
        return list(dict.fromkeys(asked)) if asked else able

    def report(self, node: str) -> NodeReport:
        """Of one of `nodes`, before anything else is awaited."""
        return self._desk.watcher.snapshot.reports[node].report

    async def send(
        self,
        call: Call,
        kind: str,
        nodes: Sequence[str],
        arguments: Mapping[str, CommandArgument],
        deed: Deed,
        summary: str,
        would: Callable[[NodeReport], str],
    ) -> Response:
        """Answers with the operation. `would` says of a node what a dry run shows."""
        summary = f"{summary} on {', '.join(nodes[:10])}{', …' if len(nodes) > 10 else ''}"
        if call.dry_run:
            parts = tuple(
                OperationPart(node=node, state=CommandState.SENT, message=would(self.report(node))) for node in nodes
            )
            return record_answer(OperationView(kind=kind, summary=summary, by=call.by, parts=parts, dry_run=True))

        async def work() -> Done:
            orders = dict.fromkeys(nodes, arguments)
            view = await self._desk.commander.send(kind, orders, by=call.by, summary=summary)
            return Done(view, summary)

        return record_answer(await self._desk.actions.perform(call, deed, work, OperationView), 202)
