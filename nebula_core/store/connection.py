"""Opening the store: settings in, a lazy `Store` out."""

from nebula_core.store.line import StoreSettings
from nebula_core.store.store import Store

__all__ = ["StoreSettings", "connect"]


async def connect(settings: StoreSettings) -> Store:
    """A store that connects with its first call, so that a process also starts while the store is away.

    Raises SettingsError for an unreadable password file and StoreUnfit for an impossible address.
    """
    return Store(settings)
