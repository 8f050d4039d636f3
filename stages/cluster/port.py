"""Let only the workers of this training connect to the port of a worker.

TensorFlow's server listens on all addresses of the machine, and runs any graph that it is sent;
graphs can read and write files. On Linux, this module decides who reaches the server:

- A socket of this module listens at the port first, and drops all packets. TensorFlow's server
  shares the port with it (SO_REUSEPORT in socket(7)), and a program in the kernel chooses which of
  the two gets a connection.
- While the workers connect, the program sends only their connections to the server. Those from
  other machines are recognised by their address. Those from this machine wait, because the first
  packet is dropped; /proc/net/tcp then names the user who connects, and Linux tries again after a
  second.
- After that, no new connection reaches the server.
"""

import ctypes
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stages.cluster.addresses import IP, find_ips, split_address
from stages.core.errors import StageError

Source = tuple[IP, int]  # where a connection comes from; the port 0 stands for any port

# Options of sockets (asm/socket.h), and instructions and offsets for filters (linux/filter.h).
SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
SHIFT_RIGHT, JUMP_IF_EQUAL, RETURN = 0x74, 0x15, 0x06
IP_HEADER = 0xFFF00000
DROP = 0
GUARD, SERVER = 0, 1  # the two sockets at the port, in the order in which they started to listen
TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")
CONNECTING = (1, 2)  # states of a connection in TABLES: established, or about to be

Instruction = tuple[int, int, int, int]


def guard_port(address: str) -> socket.socket | None:
    """Return a socket that keeps everyone away from TensorFlow's server at the port of `address`.

    Without these means of Linux, print a warning and return None. Raises StageError if the port is
    in use.
    """
    port = split_address(address)[1]
    if sys.platform == "linux" and TABLES[0].exists():
        try:
            bind(port, shared=False).close()  # a shared port could belong to another training
            guard = bind(port, shared=True)
        except OSError as error:
            raise StageError(f"TF_CONFIG: port {port} cannot be used: {error.strerror}") from error
        with suppress(OSError):  # an old kernel
            attach(guard, SO_ATTACH_FILTER, [(RETURN, 0, 0, DROP)])
            guard.listen()
            admit(guard, [])
            os.environ["TF_GRPC_REUSE_PORT"] = "1"  # read when TensorFlow's server starts
            return guard
        guard.close()
    print(
        f"warning: this system cannot protect port {port}: until the training ends, whoever "
        "reaches it can run any program as you (docs/cluster.md)",
        file=sys.stderr,
        flush=True,
    )
    return None


def bind(port: int, shared: bool) -> socket.socket:
    """Return a socket that is bound to a port of all addresses, as TensorFlow's server is."""
    dual = socket.has_dualstack_ipv6()
    found = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    try:
        if dual:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Closed connections of an earlier run, which the system keeps for a minute, do not matter.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        found.bind(("", port))
    except OSError:
        found.close()
        raise
    return found


def admit(guard: socket.socket, sources: Iterable[Source]) -> None:
    """Let connections from `sources`, and no others, reach TensorFlow's server from now on."""
    found = [instruction for source in sources for instruction in match_source(*source)]
    attach(guard, SO_ATTACH_REUSEPORT_CBPF, [*found, (RETURN, 0, 0, GUARD)])


def attach(guard: socket.socket, option: int, program: list[Instruction]) -> None:
    """Give a program to the kernel."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    pointer = struct.pack("HP", len(program), ctypes.addressof(code))
    guard.setsockopt(socket.SOL_SOCKET, option, pointer)


def match_source(ip: IP, port: int) -> list[Instruction]:
    """Return the instructions that choose the server for a packet from a source, or else go on."""
    four = ip.version == 4
    steps = [(LOAD_BYTE, IP_HEADER), (SHIFT_RIGHT, 4), (JUMP_IF_EQUAL, ip.version)]
    for i, word in enumerate(struct.unpack(f">{len(ip.packed) // 4}I", ip.packed)):
        steps += [(LOAD_WORD, IP_HEADER + (12 if four else 8) + 4 * i), (JUMP_IF_EQUAL, word)]
    if port:  # it comes first in the TCP header, after an IP header without options
        steps += [(LOAD_HALF, IP_HEADER + (20 if four else 40)), (JUMP_IF_EQUAL, port)]
    return [
        (code, 0, len(steps) - i if code == JUMP_IF_EQUAL else 0, value)
        for i, (code, value) in enumerate(steps)
    ] + [(RETURN, 0, 0, SERVER)]


def is_worker(peer: tuple[str, int], addresses: list[str], index: int) -> bool:
    """Return whether another worker may have made a connection, as far as the system can tell."""
    source = ipaddress.ip_address(peer[0]), peer[1]
    sources = find_sources(addresses, index)
    unknown = not TABLES[0].exists() and is_own(source[0])
    return unknown or source in sources or (source[0], 0) in sources


def find_sources(addresses: list[str], index: int) -> set[Source]:
    """Return from where the other workers may connect to this one now."""
    own = {(ip, split_address(addresses[index])[1]) for ip in find_ips(addresses[index])}
    sources = {source for source, destination in list_own_connections() if destination in own}
    for other in addresses[:index] + addresses[index + 1 :]:
        with suppress(StageError):  # a pod that has not started has no address yet
            sources |= {(ip, 0) for ip in find_ips(other) if not is_own(ip)}
    return sources


def list_own_connections() -> Iterator[tuple[Source, Source]]:
    """Yield both ends of each connection of this user, on Linux; this machine's end comes first."""
    for table in TABLES:
        with suppress(FileNotFoundError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, remote, state, _, _, _, uid, *_ = line.split()
                if int(state, 16) in CONNECTING and int(uid) == os.geteuid():
                    yield read_source(local), read_source(remote)


def read_source(text: str) -> Source:
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
