"""What the eight views have in common: they read the fleet, say which keys work, and what the cursor is on."""

from typing import ClassVar, Protocol

from textual.containers import Vertical
from textual.widget import Widget

from nebula_tui.adapters.chat import Chat
from nebula_tui.adapters.control import Control
from nebula_tui.messages import Selection
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.trouble import Trouble
from nebula_tui.widgets import FleetTable, KeyHint


class Host(Protocol):
    """What views get from the app: the fleet, the doors, the clocks."""

    fleet: FleetState
    control: Control

    def now(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> float:
        """Unix seconds, for display."""

    async def open_chat(self) -> Chat:
        """The data plane. Raises a NebulaError when nobody knows its address."""

    def troubles(self) -> list[Trouble]:
        """What needs a person now; worked out once however many ask."""

    def may_act(self) -> bool:
        """Whether the role allows changes."""

    def is_paused(self) -> bool:
        """Whether the operator holds the picture still."""


class View(Vertical):
    """One of the eight; `refresh_data` is called about once a second while it is seen, and when it comes into sight."""

    NAME: ClassVar[str] = ""
    DEFAULT_CSS = """
    View { height: 1fr; width: 1fr; }
    """

    def __init__(self, host: Host) -> None:
        super().__init__(id=self.NAME)
        self.host = host
        self.fleet = host.fleet

    def refresh_data(self) -> None:
        """Gives the widgets what the fleet says now; unchanged things are not painted again."""

    def each_second(self) -> None:
        """Once a second, seen or not: for counts that must not have holes. Nothing is painted here."""

    def first_focus(self) -> Widget | None:
        return None

    def hints(self) -> list[KeyHint]:
        """The keys that work here; actions the role does not allow are left out."""
        return []

    @property
    def selection(self) -> Selection | None:
        return None

    @property
    def request(self) -> str | None:
        """The request the cursor is on or that was answered last, for `why` and `cancel`."""
        return None

    def show_thing(self, selection: Selection) -> None:
        """Puts the cursor on it, or is about it from now on."""

    def can_filter(self) -> bool:
        return False

    @property
    def filter_text(self) -> str:
        return ""

    def set_filter(self, text: str) -> None:
        """The `/` line."""

    def back(self) -> bool:
        """Escape: True when something here was closed by it."""
        return False

    def copy_text(self) -> str | None:
        """What `y` copies."""
        return self.selection.name if self.selection is not None else None

    def toggle_faults(self) -> bool:
        """`z`: only what is not well; False where that has no meaning."""
        return False

    # ----------------------------------------------------------------------------------------------- small helpers

    def acting(self, *hints: KeyHint) -> list[KeyHint]:
        """Hints of actions: none for a viewer."""
        return list(hints) if self.host.may_act() else []

    @property
    def compact(self) -> bool:
        """Too little room for the large layout."""
        return self.app.size.width < 118 or self.app.size.height < 34


class TableView(View):
    """A view whose heart is one table: the keys go there first."""

    #: The table's id.
    TABLE: ClassVar[str] = ""

    @property
    def table(self) -> FleetTable:
        return self.query_one(f"#{self.TABLE}", FleetTable)

    def first_focus(self) -> Widget | None:
        return self.table
