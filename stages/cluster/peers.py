"""Who is at the other end of a connection, as far as the system can tell."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.cluster.addresses import IP, find_ips
from stages.core.errors import StageError

End = tuple[IP, int]  # one end of a connection: its IP address and port

TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")
ESTABLISHED = 1  # the state of a connection in TABLES


def is_worker(peer: End, own: End, addresses: list[str]) -> bool:
    """Return whether a worker at one of `addresses` may have connected from `peer` to `own`.

    Other machines are recognised by their address. Connections from this machine have to belong to
    this user, which only Linux tells.
    """
    if is_own(peer[0]):
        return not TABLES[0].exists() or (peer, own) in list_own_connections()
    for address in addresses:
        with suppress(StageError):  # a pod that has not started has no address yet
            if peer[0] in find_ips(address):
                return True
    return False


def make_end(name: tuple[Any, ...]) -> End:
    """Return an end as `socket.getpeername` describes it."""
    return ipaddress.ip_address(name[0]), name[1]


def list_own_connections() -> Iterator[tuple[End, End]]:
    """Yield both ends of each connection of this user, on Linux; this machine's end comes first."""
    for table in TABLES:
        with suppress(FileNotFoundError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, remote, state, _, _, _, uid, *_ = line.split()
                if int(state, 16) == ESTABLISHED and int(uid) == os.geteuid():
                    yield read_end(local), read_end(remote)


def read_end(text: str) -> End:
    """Return the IP address and the port in an entry of /proc/net/tcp."""
    words, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    ip = ipaddress.ip_address(packed)
    return getattr(ip, "ipv4_mapped", None) or ip, int(port, 16)


def is_own(ip: IP) -> bool:
    """Return whether an IP address belongs to this machine."""
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True
