"""Protect the port of a worker."""

import ctypes
import ipaddress
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from stages.cluster.addresses import find_ips, split_address


def accept_only(address: str) -> None:
    """Accept connections to `address` alone, and cut those that were made to another one before.

    TensorFlow listens on all addresses of the machine. A socket filter of Linux (socket(7),
    SO_ATTACH_FILTER) drops what is sent to another address.
    """
    if sys.platform != "linux":
        return
    own = [ipaddress.ip_address(ip) for _, ip in find_ips(address)]
    instructions = [instruction for ip in own for instruction in accept_destination(ip)]
    instructions.append((RETURN, 0, 0, 0))  # drop
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *each) for each in instructions)
    )
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.is_socket():
            continue  # Python would leave the copy of another file open
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as found:
            if found.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            name, port = found.getsockname()[:2]
            ip = ipaddress.ip_address(name)
            if port != split_address(address)[1]:
                continue
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            elif (getattr(ip, "ipv4_mapped", None) or ip) not in own:
                found.shutdown(socket.SHUT_RDWR)


# Instructions of the Berkeley Packet Filter, and the start of the IP header (linux/filter.h).
LOAD_WORD, LOAD_BYTE, SHIFT_RIGHT, JUMP_IF_EQUAL, RETURN = 0x20, 0x30, 0x74, 0x15, 0x06
IP_HEADER = 0xFFF00000
SO_ATTACH_FILTER = 26


def accept_destination(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[tuple[int, int, int, int]]:
    """Return the instructions that accept a packet sent to `ip`, or else continue after them."""
    start = 16 if ip.version == 4 else 24  # of the destination in the IP header
    compare = [(LOAD_BYTE, IP_HEADER), (SHIFT_RIGHT, 4), (JUMP_IF_EQUAL, ip.version)]
    for i, word in enumerate(struct.unpack(f">{len(ip.packed) // 4}I", ip.packed)):
        compare += [(LOAD_WORD, IP_HEADER + start + 4 * i), (JUMP_IF_EQUAL, word)]
    return [
        (code, 0, len(compare) - i if code == JUMP_IF_EQUAL else 0, value)
        for i, (code, value) in enumerate(compare)
    ] + [(RETURN, 0, 0, 0xFFFF)]
