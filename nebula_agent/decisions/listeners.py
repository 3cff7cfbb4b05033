"""Who listens where on this machine, told from the text of `/proc/net/tcp` and `/proc/net/tcp6` (Linux: proc_net_tcp.rst)."""

import ipaddress
from collections.abc import Collection
from typing import NamedTuple

_LISTEN = "0A"


class Listener(NamedTuple):
    #: The number it is bound to; `0.0.0.0` and `::` are all of the machine's.
    host: str
    port: int
    #: Of its socket: who has it open, listens.
    inode: int

    @property
    def everywhere(self) -> bool:
        return self.host in {"0.0.0.0", "::"}

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def probe_host(self) -> str:
        """How the machine itself reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(self.host, self.host)


def listeners(table: str, ports: Collection[int]) -> list[Listener]:
    """Of one table, those on the given ports. Lines that cannot be read are passed over."""
    found: list[Listener] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        try:
            number = int(port, 16)
            if number in ports:
                found.append(Listener(_number(address), number, int(fields[9])))
        except ValueError:
            continue
    return found


def _number(text: str) -> str:
    """Four bytes at a time, each four in the order of the machine (little-endian wherever engines run)."""
    raw = bytes.fromhex(text)
    number = ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))
    mapped = getattr(number, "ipv4_mapped", None)
    return str(number if mapped is None else mapped)
