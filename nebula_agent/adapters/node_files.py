"""What the agent keeps on its disk, so that it finds its engines again and never obeys an older order.

    agent.lock         one agent per folder         agent_id     tells our engines from another agent's
    orders.json        what was obeyed              replicas/    one file per replica: order, start, failures
    commands.json      what was carried out lately   store.json   the store as it was last trusted
    keys/              one key file per engine      logs/        one log per replica, and its former part
    tmp/               one folder per running start evidence/    what was learned of engines that hung

Every file is written whole, with fsync, mode 0600. A file that cannot be read is set aside and reported, not fatal: the
engine it spoke of is found again by its marker.
"""

import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import Field

from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions.commands import TakenCommands
from nebula_agent.decisions.obedience import Orders
from nebula_core.errors import NebulaError
from nebula_core.records.base import Record, frozen_map
from nebula_core.records.ids import ReplicaId
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.replica import Phase
from nebula_core.records.store_memory import Remembered
from nebula_core.security.files import write_secret

log = structlog.get_logger(__name__)

Kept = TypeVar("Kept", bound=Record)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NodeTaken(NebulaError):
    """Another agent uses this node's name or this folder."""

    code = "node_taken"


class KeptReplica(Record):
    """One replica as the agent finds it again."""

    replica: ReplicaId
    placement: SignedPlacement
    phase: Phase = Phase.PENDING
    phase_reason: str | None = None
    #: The start that is, or was, under way.
    started: Started | None = None
    digest: str | None = None
    proven: bool = False
    load_seconds: float | None = None
    restarts: int = 0
    #: Unix seconds of the latest failures.
    failures: tuple[float, ...] = ()
    in_a_row: int = 0
    given_up: str | None = None
    failure_log: tuple[str, ...] = ()
    #: What a tag meant when this replica was first started here.
    image: str | None = None
    image_digest: str | None = None
    #: The first failure since it last ran well for a while.
    first_failure_reason: str | None = None
    first_failure_log: tuple[str, ...] = ()
    #: File with what was learned of the last hang.
    evidence: str | None = None


class _KeptOrders(Record):
    max_epoch: int = 0
    by_replica: dict[str, tuple[int, int]] = Field(default_factory=dict)


class NodeFiles:
    """The folder of one agent. Reads and writes block for a disk's time: call them in a thread where it matters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.replicas = directory / "replicas"
        self.keys = directory / "keys"
        self.logs = directory / "logs"
        #: Made when there is something to keep.
        self.evidence = directory / "evidence"
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the folder and claims it for this process. Raises NodeTaken."""
        for folder in (self.directory, self.replicas, self.keys, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "?"
            os.close(handle)
            raise NodeTaken(
                f"an agent with pid {holder} already uses {self.directory}", hint="Stop it, or set another data_dir"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._lock = handle

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def agent_id(self) -> str:
        """One word for this folder, made once."""
        path = self.directory / "agent_id"
        try:
            found = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            found = ""
        if not found.isalnum():
            found = secrets.token_hex(8)
            write_secret(path, f"{found}\n".encode())
        return found

    def orders(self) -> Orders:
        kept = self._read("orders.json", _KeptOrders)
        return Orders() if kept is None else Orders(kept.max_epoch, frozen_map(kept.by_replica))

    def keep_orders(self, orders: Orders) -> None:
        kept = _KeptOrders(max_epoch=orders.max_epoch, by_replica=dict(orders.by_replica))
        write_secret(self.directory / "orders.json", kept.to_json().encode())

    def remembered_store(self) -> Remembered | None:
        return self._read("store.json", Remembered)

    def remember_store(self, remembered: Remembered) -> None:
        write_secret(self.directory / "store.json", remembered.to_json().encode())

    def taken_commands(self) -> TakenCommands:
        return self._read("commands.json", TakenCommands) or TakenCommands()

    def keep_taken_commands(self, taken: TakenCommands) -> None:
        write_secret(self.directory / "commands.json", taken.to_json().encode())

    def all_replicas(self) -> Mapping[str, KeptReplica]:
        found: dict[str, KeptReplica] = {}
        for path in sorted(self.replicas.glob("*.json")):
            try:
                kept = KeptReplica.from_json(path.read_bytes())
            except (OSError, ValueError) as error:
                self._set_aside(path, error)
                continue
            found[kept.replica] = kept
        return found

    def keep_replica(self, kept: KeptReplica) -> None:
        write_secret(self.replicas / f"{kept.replica}.json", kept.to_json().encode())

    def forget_replica(self, replica: str) -> None:
        """Removes all that was kept of a replica that is gone for good."""
        for path in (
            self.replicas / f"{replica}.json",
            self.key_file(replica),
            self.secret_file(replica),
            self.log_file(replica),
            former_log(self.log_file(replica)),
            self.log_file(replica).with_suffix(".log.cursor"),
        ):
            path.unlink(missing_ok=True)

    def key_file(self, replica: str) -> Path:
        """The form its engine wants the key in."""
        return self.keys / f"{replica}.key"

    def secret_file(self, replica: str) -> Path:
        """The bare key of the running start, for an agent that comes back."""
        return self.keys / f"{replica}.secret"

    def log_file(self, replica: str) -> Path:
        return self.logs / f"{replica}.log"

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        """What the file says; None where there is none, or none that can be read: that one is set aside."""
        path = self.directory / name
        try:
            return kind.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._set_aside(path, error)
            return None

    def _set_aside(self, path: Path, error: Exception) -> None:
        log.error("kept_file_unreadable", file=str(path), error=type(error).__name__)
        aside = path.with_suffix(".unreadable")
        try:
            path.replace(aside)
        except OSError:
            log.exception("kept_file_not_set_aside", file=str(path))


def former_log(path: Path) -> Path:
    return path.with_suffix(".log.1")


def boot_id() -> str:
    """One word per boot of this machine; "unknown" where the kernel does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
