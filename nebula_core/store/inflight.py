"""What is open in the proxies, and the commands that reach them: through the store only while somebody asks.

A command goes into the inbox of each proxy, a stream on which it waits; what it answers is one field of a hash. Both
are forgotten a minute after they were written, so a proxy that has died leaves nothing behind.
"""

from collections.abc import Iterable, Sequence

import structlog

from nebula_core.records.inflight import CommandAnswer, InflightReport, ProxyCommand
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line

log = structlog.get_logger(__name__)

_KEPT_SECONDS = 60
_COMMANDS_KEPT = 1000
_SLICE = 50


class Inflight:
    _commands: Line
    _waiting: Line

    async def command_proxies(self, proxies: Iterable[str], command: ProxyCommand) -> None:
        """Puts the command into the inbox of each."""
        json = command.to_json()
        orders: list[list[Argument]] = []
        for proxy in proxies:
            inbox = keys.proxy_inbox(proxy)
            orders.append(["XADD", inbox, "MAXLEN", "~", _COMMANDS_KEPT, "*", "json", json])
            orders.append(["EXPIRE", inbox, _KEPT_SECONDS])
        if orders:
            await self._commands.ask_all(orders)

    async def proxy_commands(
        self, proxy: str, after: str | None, block_seconds: float
    ) -> tuple[list[ProxyCommand], str | None]:
        """Commands after an id (None: from the first that is kept) and the id to go on from; waits for the first one."""
        reply = await self._waiting.ask(
            "XREAD", "COUNT", 100, "BLOCK", max(1, round(block_seconds * 1000)),
            "STREAMS", keys.proxy_inbox(proxy), after or "0-0", patience=block_seconds,
        )  # fmt: skip
        found: list[ProxyCommand] = []
        for entry_id, fields in reply[0][1] if reply else []:
            after = entry_id
            try:
                found.append(ProxyCommand.from_json(fields.get("json", "")))
            except ValueError as error:
                log.warning("proxy_command_unreadable", id=entry_id, error=type(error).__name__)
        return found, after

    async def answer_command(self, command: str, answer: CommandAnswer) -> None:
        key = keys.answers(command)
        await self._commands.ask_all([["HSET", key, answer.proxy, answer.to_json()], ["EXPIRE", key, _KEPT_SECONDS]])

    async def command_answers(self, command: str) -> list[CommandAnswer]:
        """What has been answered so far."""
        found: list[CommandAnswer] = []
        for raw in await self._commands.ask("HVALS", keys.answers(command)):
            try:
                found.append(CommandAnswer.from_json(raw))
            except ValueError as error:
                log.warning("command_answer_unreadable", command=command, error=type(error).__name__)
        return found

    async def publish_inflight(self, report: InflightReport, ttl: float = 4.0) -> None:
        """Shows what is open; the next one follows within a second, or the proxy is gone."""
        await self._commands.ask("SET", keys.inflight(report.proxy), report.to_json(), "PX", max(1, round(ttl * 1000)))

    async def read_inflight(self, proxies: Sequence[str]) -> dict[str, InflightReport]:
        """The latest of each proxy that shows what it has open."""
        found: dict[str, InflightReport] = {}
        for start in range(0, len(proxies), _SLICE):
            names = proxies[start : start + _SLICE]
            for name, raw in zip(
                names, await self._commands.ask("MGET", *(keys.inflight(name) for name in names)), strict=True
            ):
                if raw is None:
                    continue
                try:
                    found[name] = InflightReport.from_json(raw)
                except ValueError as error:
                    log.warning("inflight_unreadable", proxy=name, error=type(error).__name__)
        return found
