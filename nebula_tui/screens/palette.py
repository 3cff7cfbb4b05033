"""The palette (^P): every screen, thing and action by a few letters of its name."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from nebula_core.security.text import clean_text
from nebula_tui.presenters.chrome import SCREENS
from nebula_tui.presenters.plan import Action
from nebula_tui.screens.main import MainScreen

_MOST_HITS: Final = 50


class NebulaCommands(Provider):
    """What can be done from the palette, as (title, help, `:` command)."""

    def _entries(self) -> Iterator[tuple[str, str, str]]:
        screen = next((one for one in self.app.screen_stack if isinstance(one, MainScreen)), None)
        if screen is None:
            return
        fleet = screen.fleet
        for digit, name, label, _ in SCREENS:
            yield f"Show {label}", f"screen {digit}", name
        for deployment in sorted(fleet.deployments):
            yield f"Model {deployment}", "show it", f"models {deployment}"
            yield f"Chat with {deployment}", "through the proxy", f"chat {deployment}"
            if screen.host.may_act():
                yield f"Scale {deployment}", "choose how many, see the plan", f"scale {deployment}"
                yield f"Restart {deployment}", "see the plan first", Action("restart", "deployment", deployment).command
        for replica in sorted(fleet.replicas):
            yield f"Replica {replica}", "its engine", f"engine {replica}"
            yield f"Logs of {replica}", "follow", f"logs {replica}"
            yield f"Chat with {replica}", "pinned", f"chat {replica}"
        for node in sorted(fleet.nodes):
            yield f"Node {node}", "show it", f"nodes {node}"
            if screen.host.may_act():
                yield f"Drain {node}", "see the plan first", f"drain {node}"
                yield f"Cordon {node}", "no new replicas there", f"cordon {node}"
        for theme in sorted(self.app.available_themes):
            yield f"Theme {theme}", "colours", f"theme {theme}"
        yield "Help", "keys", "help"
        yield "Quit", "leave nebula", "q"

    def _run(self, command: str) -> None:
        for screen in self.app.screen_stack:
            if isinstance(screen, MainScreen):
                screen.run_command(command.removeprefix("nebula "))

    async def discover(self) -> Hits:
        for title, help_, command in list(self._entries())[:_MOST_HITS]:
            yield DiscoveryHit(
                Content(clean_text(title)), partial(self._run, command), text=clean_text(title), help=help_
            )

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        scored = [
            (score, title, help_, command)
            for title, help_, command in ((clean_text(t), h, c) for t, h, c in self._entries())
            if (score := matcher.match(title)) > 0
        ]
        scored.sort(key=lambda hit: -hit[0])
        for score, title, help_, command in scored[:_MOST_HITS]:
            yield Hit(score, matcher.highlight(title), partial(self._run, command), text=title, help=help_)
