"""Which workers take part in a training: their number and their addresses, from TF_CONFIG.

TF_CONFIG is TensorFlow's convention: a JSON text in the environment, which schedulers can set too.

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}
"""

import ipaddress
import json
import re
import socket
from typing import Any

from stages.core.errors import StageError

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_tf_config(text: str) -> tuple[list[str], int]:
    """Return the addresses of all workers, as host:port, and the index of this one."""
    try:
        config = json.loads(text)
        addresses, task = config["cluster"]["worker"], config["task"]
        kind, index = task["type"], int(task["index"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StageError(
            f"TF_CONFIG is not readable ({type(error).__name__}: {error}); it has to look like "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    if kind != "worker" or set(config["cluster"]) != {"worker"}:
        raise StageError("TF_CONFIG has tasks of another type; all have to be of type worker")
    if not isinstance(addresses, list) or not addresses:
        raise StageError(f"TF_CONFIG: worker is {addresses!r}, expected a list of host:port")
    for address in addresses:
        if not is_address(address):
            raise StageError(f"TF_CONFIG: {address!r} is not an address such as host:2222")
    if repeated := sorted({address for address in addresses if addresses.count(address) > 1}):
        raise StageError(f"TF_CONFIG has an address twice: {', '.join(repeated)}")
    local = [address for address in addresses if is_local(split_address(address)[0])]
    if 0 < len(local) < len(addresses):
        raise StageError(
            f"TF_CONFIG: {local[0]} means another machine to each worker; use the machine's IP "
            "address or name"
        )
    if not 0 <= index < len(addresses):
        raise StageError(f"TF_CONFIG: index is {index}, expected 0 to {len(addresses) - 1}")
    return addresses, index


def is_address(address: Any) -> bool:
    """Return whether `address` looks like host:port. IPv6 addresses stand in brackets."""
    if not isinstance(address, str) or not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", address):
        return False
    host, port = split_address(address)
    try:
        return bool(host.encode("idna")) and 0 < port < 2**16
    except UnicodeError:  # a part of the name is empty or too long
        return False


def check_count(workers: int, replicas: int) -> None:
    """Raise StageError if there is no worker, or if there are more workers than replicas."""
    if workers < 1:
        raise StageError(f"the number of workers is {workers}, expected 1 to {replicas}")
    if workers > replicas:
        raise StageError(
            f"there are {workers} workers and train.replicas is {replicas}: each worker computes "
            f"at least one replica; start at most {replicas} workers or raise train.replicas"
        )


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of an address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def find_ips(address: str) -> list[IP]:
    """Return the IP addresses of a host. Raises StageError if its name is not known."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StageError(f"TF_CONFIG: {host} is not a known host: {error}") from error
    return [ipaddress.ip_address(name) for name in sorted({str(entry[4][0]) for entry in found})]


def find_own_ips(address: str) -> list[IP]:
    """Return the IP addresses of this worker's own host.

    Raises StageError if other machines cannot reach them. Debian gives a machine's own name the
    address 127.0.1.1, which every machine uses for itself.
    """
    host, _ = split_address(address)
    found = find_ips(address)
    for ip in found:
        if ip.is_unspecified:
            raise StageError(f"TF_CONFIG: {host} is not an address that other workers can reach")
        if ip.is_loopback and not is_local(host):
            raise StageError(
                f"TF_CONFIG: {host} is {ip} on this machine, which other machines cannot reach; "
                "use the machine's IP address instead of its name"
            )
    return found


def is_local(host: str) -> bool:
    """Return whether a host means the machine itself on every machine."""
    return host == "localhost" or host.startswith("127.") or host == "::1"
