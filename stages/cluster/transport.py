"""Exchange bytes between workers over TCP.

Each worker connects to every other one, and only sends on these connections; what it hears arrives
on those that the others made. A connection carries frames: a kind, a length and so many bytes. A
thread in the background reads and writes them, so a worker notices that another has ended, hangs or
cannot be reached. Nothing that arrives is run: frames hold arrays and JSON.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread
from typing import Any

from stages.cluster.addresses import find_own_ips, split_address
from stages.cluster.peers import is_worker, make_end
from stages.core.errors import StageError

PATIENCE = 120  # seconds to wait for the other workers to start
SILENCE = 20  # seconds without a byte, after which a worker no longer answers
PAUSE = 0.1  # seconds between two attempts to connect
BEAT = 2  # seconds between two frames that only say that a worker is alive

HEADER = struct.Struct(">BQ")  # the kind of a frame and its length
# HELLO: the sender's index and addresses. ALIVE and READY: the sender has not, or has, heard from
# all others. LOST: the index of a worker that no longer answers.
HELLO, READY, DATA, ALIVE, LOST = range(5)
MAX_HELLO = 1 << 20  # bytes


def name_workers(addresses: list[str], workers: Iterable[int]) -> str:
    """Return the indices and addresses of some workers, for a message."""
    return ", ".join(f"worker {worker} ({addresses[worker]})" for worker in sorted(workers))


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


def pack_frame(kind: int, content: bytes = b"") -> bytes:
    """Return a frame."""
    return HEADER.pack(kind, len(content)) + content


async def read_frame(
    reader: asyncio.StreamReader, limit: float = float("inf")
) -> tuple[int, bytes]:
    """Return the kind and the content of the next frame.

    Raises EOFError at the end, TimeoutError if nothing arrives for `SILENCE` seconds, and
    ValueError for a frame of more than `limit` bytes.
    """

    async def read(size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            chunk = await asyncio.wait_for(reader.read(size - len(content)), SILENCE)
            if not chunk:
                raise EOFError
            content += chunk
        return bytes(content)

    kind, size = HEADER.unpack(await read(HEADER.size))
    if size > limit:
        raise ValueError(f"a frame of {size} bytes")
    return kind, await read(size)


def parse_hello(content: bytes) -> tuple[int, object]:
    """Return the index and the addresses in a HELLO. Raises ValueError for anything else."""
    with suppress(RecursionError):
        match json.loads(content):
            case [int(sender), known]:
                return sender, known
    raise ValueError("not a message of a worker")


class Transport:
    """The connections of this worker with all others."""

    def __init__(self, addresses: list[str], index: int) -> None:
        """Keep the addresses of all workers and the index of this one."""
        self.addresses, self.index, self.count = addresses, index, len(addresses)
        self.failure = ""  # the message about a worker that no longer answers
        self._others = set(range(self.count)) - {index}
        # What each worker sent, and at the end the index of a worker that no longer answers.
        self._frames: dict[int, asyncio.Queue[bytes | int]] = {
            worker: asyncio.Queue() for worker in self._others
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False  # all workers have heard from all others
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._heard: dict[int, object] = {}  # the connections on which workers said HELLO
        self._ready: set[int] = set()  # the workers that have heard from all others
        self._told: set[int] = set()  # the workers to which this worker has said READY
        self._refused: set[str] = set()  # IP addresses of strangers
        self._mistakes: list[str] = []

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Wait for the other workers, and stay connected with them during the block.

        Raises StageError if this worker's address cannot be used, if another worker does not come
        within `PATIENCE` seconds, or if it was started with other addresses or the same index.
        """
        listeners = listen(self.addresses[self.index])
        with asyncio.Runner() as runner:  # ends all tasks
            self._loop = runner.get_loop()
            thread = Thread(target=self._loop.run_forever, daemon=True)
            thread.start()
            try:
                self._run(self._connect(listeners))
                yield
            finally:
                self._run(self._flush())
                self._loop.call_soon_threadsafe(self._loop.stop)
                thread.join()

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Return the `content` of every worker, in their order.

        All workers call this equally often. Raises StageError if one of them no longer answers.
        """
        contents: list[bytes] = self._run(self._gather(content))
        return contents

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _connect(self, listeners: list[socket.socket]) -> None:
        servers = [await asyncio.start_server(self._hear, sock=each) for each in listeners]
        self._tasks = [asyncio.create_task(self._talk(worker)) for worker in self._others]
        own = name_workers(self.addresses, {self.index})
        try:
            async with asyncio.timeout(PATIENCE):
                while not (self._ready == self._told == self._others or self._mistakes):
                    await asyncio.sleep(PAUSE / 10)
        except TimeoutError:
            silent = self._others - self._heard.keys()
            names = name_workers(
                self.addresses, silent or self._others - self._ready or self._others - self._told
            )
            missed = f"start within {PATIENCE} s, or cannot reach {own}"
            missed = missed if silent else f"find all workers within {PATIENCE} s"
            strangers = ", ".join(sorted(self._refused))
            unknown = f"; refused connections from {strangers}" if strangers else ""
            self._mistakes.append(f"{names} did not {missed}{unknown}")
        finally:
            self._started = not self._mistakes
            if self._mistakes:
                await asyncio.sleep(10 * PAUSE)  # so that the other workers hear of it too
            for server in servers:
                server.close()
        if self._mistakes:
            raise StageError(self._mistakes[0])

    async def _talk(self, worker: int) -> None:
        """Connect to a worker, again until all have started, and keep the connection alive."""
        while not self._started:
            with suppress(OSError):  # it has not started, or has ended
                address = split_address(self.addresses[worker])
                reader, writer = await asyncio.open_connection(*address)
                with closing(writer):
                    hello = json.dumps([self.index, self.addresses]).encode()
                    writer.write(pack_frame(HELLO, hello))
                    self._told.discard(worker)
                    self._writers[worker] = writer
                    while not reader.at_eof():  # nothing arrives here but the end
                        ready = self._heard.keys() == self._others
                        writer.write(pack_frame(READY if ready else ALIVE))
                        self._told.update({worker} if ready else ())
                        await writer.drain()
                        with suppress(TimeoutError):
                            pause = BEAT if self._started else PAUSE
                            await asyncio.wait_for(reader.read(1), pause)
            if not self._started:
                self._writers.pop(worker, None)
                await asyncio.sleep(PAUSE)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what arrives on a connection from another worker, or from a stranger."""
        sender, lost = -1, -1
        with closing(writer), suppress(OSError, ValueError, EOFError, asyncio.CancelledError):
            peer, own = (make_end(writer.get_extra_info(f"{end}name")) for end in ("peer", "sock"))
            if not is_worker(peer, own, self.addresses):
                self._refused.add(str(peer[0]))
                return
            _, content = await read_frame(reader, MAX_HELLO)
            sender, known = parse_hello(content)
            if known != self.addresses:
                own_name = name_workers(self.addresses, {self.index})
                self._mistakes.append(
                    f"{own_name} and worker {sender} have different addresses in TF_CONFIG"
                )
            if known != self.addresses or sender not in self._others or self._started:
                return
            self._heard[sender], lost = writer, sender
            while True:
                kind, content = await read_frame(reader)
                if kind == READY:
                    self._ready.add(sender)
                elif kind == DATA:
                    self._frames[sender].put_nowait(content)
                elif kind == LOST:
                    lost = int.from_bytes(content)
                    break
        if self._heard.get(sender) is writer:  # it has ended; before the start, it may come again
            if self._started:
                self._frames[sender].put_nowait(lost)
            else:
                del self._heard[sender]
                self._ready.discard(sender)

    async def _gather(self, content: bytes) -> list[bytes]:
        for writer in self._writers.values():
            writer.write(pack_frame(DATA, content))
        contents = []
        for worker in range(self.count):
            found = content if worker == self.index else await self._frames[worker].get()
            if isinstance(found, int):
                for writer in self._writers.values():
                    writer.write(pack_frame(LOST, found.to_bytes(8)))
                self.failure = f"{name_workers(self.addresses, {found})} no longer answers"
                raise StageError(self.failure)
            contents.append(found)
        return contents

    async def _flush(self) -> None:
        """Send what is not sent yet."""
        for writer in self._writers.values():
            writer.close()
        waiting = (writer.wait_closed() for writer in self._writers.values())
        with suppress(TimeoutError):  # a worker that hangs takes nothing
            await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
