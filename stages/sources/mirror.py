"""The source on the web: a mirror that serves gzipped IDX files over HTTPS."""

import io
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3

from stages.sources.catalogue import IdxFile
from stages.sources.fetch import SourceError, TransientError

MIN_SPEED = 10_000  # bytes per second, on average
GZIP_OVERHEAD = 1 << 20  # bytes; gzip adds less than this to any file of the catalogue
FIRST_BYTES = 64  # are read together, even if they arrive one by one


class ResponseBody(io.RawIOBase):
    """The body of a response while it arrives. It fails if the body is too slow or too long.

    Time-outs are not enough: each received byte resets them, so a mirror that sends one byte now
    and then would never time out.
    """

    def __init__(self, response: requests.Response, max_size: int, patience: float) -> None:
        """Read at most `max_size` bytes; check MIN_SPEED after `patience` seconds."""
        self.response, self.max_size, self.patience = response, max_size, patience
        self.start, self.size = time.monotonic(), 0

    def readable(self) -> bool:
        """Return True. BufferedReader needs this method."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the bytes that have arrived, up to the size of `buffer`; return their number."""
        chunk = self.response.raw.read1(len(buffer))
        # The first bytes tell the format of the file.
        deadline = self.start + self.patience
        while self.size == 0 and 0 < len(chunk) < FIRST_BYTES and time.monotonic() < deadline:
            if not (more := self.response.raw.read1(len(buffer) - len(chunk))):
                break
            chunk += more
        buffer[: len(chunk)] = chunk
        self.size += len(chunk)
        if self.size > self.max_size:
            raise SourceError(f"{self.response.url}: more than {self.max_size} bytes")
        seconds = time.monotonic() - self.start
        if chunk and seconds > self.patience and self.size < MIN_SPEED * seconds:
            raise SourceError(f"{self.response.url}: only {self.size} bytes in {seconds:.1f} s")
        return len(chunk)


@contextmanager
def open_mirror(
    mirror: str, file: IdxFile, timeout: tuple[float, float] = (10, 30), patience: float = 30
) -> Iterator[BinaryIO]:
    """Open `<mirror><name>.gz` for reading.

    `timeout` holds two limits in seconds: one to connect, and one between two reads. Raises
    TransientError for a lost connection, a time-out, and a status that may be temporary (429, or
    500 and above). Raises SourceError for other statuses, and for a mirror that is slower than
    MIN_SPEED after `patience` seconds.
    """
    url = f"{mirror}{file.name}.gz"
    with requests.Session() as session:
        session.max_redirects = 5
        # Without this, requests can send a mirror the default password in ~/.netrc, and the
        # mirror then answers with an error.
        session.auth = lambda request: request
        session.rebuild_auth = lambda *_: None  # type: ignore[method-assign]  # after a redirect
        if urlsplit(url).scheme == "https":
            session.adapters.pop("http://")  # refuse redirects to an unencrypted address
        try:
            with closing(session.get(url, stream=True, timeout=timeout)) as response:
                if response.status_code != requests.codes.ok:
                    transient = response.status_code == 429 or response.status_code >= 500
                    raise (TransientError if transient else SourceError)(
                        f"{response.url} answered {response.status_code} {response.reason}"
                    )
                response.raw.auto_close = False  # BufferedReader reads once more after the end
                # Without a limit, a stream of empty gzip blocks would never end.
                yield ResponseBody(response, file.size + GZIP_OVERHEAD, patience)  # type: ignore[misc]
        except (requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
            raise SourceError(f"{url}: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(f"{url}: {find_root_cause(error)}") from error


def find_root_cause(error: BaseException) -> str:
    """Return the type and message of the first exception in the chain that ends with `error`."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"
