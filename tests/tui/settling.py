"""When an app has nothing left to do, as its messages tell it.

A pilot's own pause ends when the process uses little of the processor: one that gets none, on a busy machine, passes
for one that has finished, and the test looks at a screen that is still being made.
"""

from typing import Any

from textual._context import message_hook
from textual.app import App
from textual.message import Message
from textual.pilot import Pilot

#: So many turns of every widget are enough for whatever one key or message leads to.
TURNS = 100


class Counted(App[None]):
    """An app that counts the messages its widgets handle."""

    handled = 0

    async def _process_messages(self, *arguments: Any, **options: Any) -> None:
        message_hook.set(self._count)
        await super()._process_messages(*arguments, **options)

    def _count(self, _: Message) -> None:
        self.handled += 1


async def settled(pilot: Pilot[None]) -> None:
    """Until every widget has had its turn twice with nothing to do in it, and what they asked for is painted."""
    app = pilot.app
    assert isinstance(app, Counted)
    calm = 0
    # Not for ever: an app that is slower than its own timers always has something to do.
    for _ in range(TURNS):
        if calm == 2:
            break
        before, widgets = app.handled, sum(1 for _ in app.screen.walk_children(with_self=True))
        # Asks each of them, and the app, for one turn, and paints: with a time given it looks at no processor.
        await pilot.pause(0)
        calm = calm + 1 if app.handled - before <= widgets + 1 else 0
