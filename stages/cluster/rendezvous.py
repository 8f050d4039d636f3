"""Wait until all workers have started and can reach each other.

TensorFlow waits up to an hour for a missing worker, and holds Python's global lock meanwhile, so
that no thread could name the worker or end the process. So the workers first find each other over
plain sockets, at the addresses that TensorFlow will use.
"""

import asyncio
import json
import socket
from contextlib import closing, suppress

from stages.cluster.addresses import find_own_ips, split_address
from stages.cluster.failures import name_workers
from stages.cluster.port import is_worker
from stages.core.errors import StageError

PATIENCE = 120  # seconds to wait for the other workers
PAUSE = 0.1  # seconds between two messages or attempts


def wait_for_all(addresses: list[str], index: int) -> None:
    """Return when every worker has heard from every other one; this one has the given index.

    Until then this worker listens at its own address, and nowhere else.

    Raises StageError if that address cannot be used, if another worker does not come within
    `PATIENCE` seconds, or if it was started with other addresses or with the same index.
    """
    listeners = listen(addresses[index])
    try:
        asyncio.run(_wait_for_all(addresses, index, listeners))
    finally:
        for listener in listeners:
            listener.close()


def listen(address: str) -> list[socket.socket]:
    """Return sockets that listen at an address of this machine, one for each of its IP addresses.

    Raises StageError if the address is in use or belongs to another machine.
    """
    listeners: list[socket.socket] = []
    for ip in find_own_ips(address):
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        try:
            # On Linux this sets SO_REUSEADDR, so that closed connections of an earlier run, which
            # the system keeps for a minute, do not matter.
            listeners.append(
                socket.create_server((str(ip), split_address(address)[1]), family=family)
            )
        except OSError as error:
            for listener in listeners:
                listener.close()
            reason = (error.strerror or str(error)).partition(" (while")[0]
            raise StageError(
                f"TF_CONFIG: this worker cannot listen at {address}: {reason}; is another worker "
                "started with the same index, or is it an address of another machine?"
            ) from error
    return listeners


async def _wait_for_all(addresses: list[str], index: int, listeners: list[socket.socket]) -> None:
    """Send messages to all other workers and read theirs, until all have heard from all.

    A message is a line of JSON: the index of its sender, all addresses that the sender knows, and
    whether it has heard from all others.
    """
    own = name_workers(addresses, {index})
    others = set(range(len(addresses))) - {index}
    heard: set[int] = set()  # the workers whose messages arrive
    complete: set[int] = set()  # those that have heard from all others
    told: set[int] = set()  # those to which this worker sent that it has
    refused: set[str] = set()  # IP addresses of strangers
    mistakes: list[str] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent_by: set[int] = set()
        with closing(writer), suppress(OSError, ValueError, asyncio.CancelledError):
            peer = writer.get_extra_info("peername")
            if not is_worker(peer, addresses, index):
                refused.add(peer[0])
                return
            while message := parse(await reader.readline()):
                sender, known, is_complete = message
                if known != addresses:
                    mistakes.append(
                        f"{own} and worker {sender} have different addresses in TF_CONFIG"
                    )
                elif sender in others:
                    sent_by.add(sender)
                    heard.add(sender)
                    complete.update({sender} if is_complete else ())
        heard.difference_update(sent_by - complete)  # it has ended, and may start again

    async def send(worker: int) -> None:
        while True:
            with suppress(OSError):  # it has not started, or has ended
                _, writer = await asyncio.open_connection(*split_address(addresses[worker]))
                with closing(writer):
                    while True:
                        is_complete = heard == others
                        message = json.dumps([index, addresses, is_complete])
                        writer.write(message.encode() + b"\n")
                        await writer.drain()
                        told.update({worker} if is_complete else ())
                        await asyncio.sleep(PAUSE)
            await asyncio.sleep(PAUSE)

    servers = [await asyncio.start_server(read, sock=listener) for listener in listeners]
    senders = [asyncio.create_task(send(worker)) for worker in others]
    try:
        async with asyncio.timeout(PATIENCE):
            while not (complete == told == others or mistakes):
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        names = name_workers(addresses, others - heard or others - complete or others - told)
        missed = f"start within {PATIENCE} s, or cannot reach {own}"
        missed = missed if others - heard else f"find all workers within {PATIENCE} s"
        unknown = f"; refused connections from {', '.join(sorted(refused))}" if refused else ""
        mistakes.append(f"{names} did not {missed}{unknown}")
    finally:
        if mistakes:
            await asyncio.sleep(10 * PAUSE)  # so that the other workers hear of it too
        for server in servers:
            server.close()
        for sender in senders:
            sender.cancel()
        await asyncio.sleep(PAUSE)  # asyncio reports a `read` that ends before it has begun
    if mistakes:
        raise StageError(mistakes[0])


def parse(line: bytes) -> tuple[int, object, bool] | None:
    """Return the content of a message, or None if it is not one."""
    with suppress(ValueError, RecursionError):
        match json.loads(line):
            case [int(sender), known, bool(is_complete)]:
                return sender, known, is_complete
    return None
