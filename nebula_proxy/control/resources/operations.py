"""`/operations`: what became of work that takes its time (pulls, prunes, prefetches)."""

from collections.abc import Sequence

from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.views import OperationView
from nebula_proxy.control.answers import record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Operation
from nebula_proxy.control.refusals import not_found


class Operations:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "GET", "/operations/{operation}", self.one, Role.VIEWER, "Long work and how far it is", OperationView
            ),
        )

    async def one(self, operation: str) -> Response:
        found = None
        if operation.isalnum() and operation.isascii() and len(operation) <= 64:
            found = await self._desk.commander.operation(operation)
        if found is None:
            raise not_found("operation", operation, ())
        return record_answer(found)
