"""Fixtures that several test modules use."""

import fcntl
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from helpers import fork_server
from helpers.cases import make_sections
from helpers.needs import find_program, miss
from helpers.parameters import read_defaults
from helpers.project import Project, spy_on_repro
from helpers.server import Server, running
from hypothesis import settings

import stages  # first: it sets variables that NumPy and TensorFlow read when they are loaded

import numpy as np  # isort: skip

ROOT = Path(stages.__file__).parents[1]

# Tests and DVC run the programs of this environment: dvc, python, ruff.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

SERVER = pytest.StashKey[subprocess.Popen | None]()
VARIABLES = pytest.StashKey[dict[str, str]]()

# Hypothesis tries the same examples in every run, and a slow machine exceeds no time limit.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_configure(config):
    """Start one server for all processes of a test run."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[SERVER] = fork_server.start()
    config.stash[VARIABLES] = dict(os.environ)


def pytest_unconfigure(config):
    if server := config.stash.get(SERVER, None):
        fork_server.stop(server)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests by the fixtures that they use, and run the slow ones first.

    The quick ones then keep all processes busy until the last slow one has finished.
    """
    for item in items:
        fixtures = set(item.fixturenames)
        if fixtures & {"first_run", "trained"}:
            item.add_marker("slow")
        if fixtures & {"mnist", "fashion_mnist", "package_index"}:  # these may download something
            item.add_marker("network")
        if "browser" in fixtures:
            item.add_marker("browser")
        if "mounting" in fixtures:
            item.add_marker("linux")
        if item.get_closest_marker("linux") and sys.platform != "linux":
            item.add_marker(pytest.mark.skip("needs Linux"))
        if "small_project" in fixtures:  # one module, one copy of the project
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Give each test the same environment. OpenCV and other libraries change it when they load.

    The fork server would run a new process where a fork is wanted.
    """
    variables = item.config.stash[VARIABLES]
    for name in os.environ.keys() - variables.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(variables)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder that is the current one, so stages read and write there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_python(tmp_path):
    """A function that runs Python in `tmp_path`, where the project's modules can be imported."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [fork_server.find("python"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running(Server()) as server:
        yield server


@pytest.fixture
def tls_server(monkeypatch, tmp_path):
    """The same server over https, with a certificate that requests trusts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    with running(server):
        yield server


@pytest.fixture(scope="session")
def browser():
    """A real headless Chromium. The system must have it, because no Python package contains it."""
    path = find_program("chromium-headless-shell", "chromium", "google-chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tensorflow():
    """Configure TensorFlow as the stages do. A process can do this once."""
    # Imported here because TensorFlow takes seconds to load.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    configure_tensorflow(2)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that the processes of one test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time run the `with` block."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder in the first process that needs it; the others wait until it is complete."""
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def first_run(shared):
    """A folder that holds a small project after its first run, for tests to copy.

    `project` is the committed project, `used.json` is what each stage used in that run, and
    `printed.txt` is what the run printed.
    """

    def make(folder: Path) -> None:
        (folder / "project").mkdir()
        project = Project.create(folder / "project")
        used, printed = spy_on_repro(project, folder / "programs")
        (folder / "used.json").write_text(json.dumps(used))
        (folder / "printed.txt").write_text(printed)
        project.run("python", "-m", "dvc_verify", "record")
        project.commit("first run")

    return prepare(shared / "first_run", make)


@pytest.fixture(scope="module")
def small_project(first_run, tmp_path_factory):
    """A small project after its first run, for the tests of one module.

    A module changes it as its tests need, most often in a fixture `project`.
    """
    return Project(first_run / "project").copy(tmp_path_factory.mktemp("small") / "project")


def download_once(name: str, shared: Path) -> Path:
    """Return the folder with a dataset's IDX files: the project's, or one that is made once."""
    from stages.core.errors import StageError
    from stages.core.paths import RAW
    from stages.download import download
    from stages.sources.catalogue import CATALOGUE
    from stages.sources.fetch import has_expected_hash

    if all(has_expected_hash(ROOT / RAW / file.name, file) for file in CATALOGUE[name].files):
        return ROOT / RAW
    try:
        return prepare(shared / name, lambda folder: download(CATALOGUE[name], None, folder))
    except StageError as error:
        miss(f"{CATALOGUE[name].title}: {str(error).splitlines()[0]}")


@pytest.fixture(scope="session")
def mnist(shared):
    """The folder with MNIST's four IDX files."""
    return download_once("mnist", shared)


@pytest.fixture(scope="session")
def fashion_mnist(shared):
    """The folder with Fashion-MNIST's four IDX files."""
    return download_once("fashion_mnist", shared)


@pytest.fixture(scope="session")
def package_index(tmp_path_factory):
    """Skip where pip cannot download packages."""
    folder = tmp_path_factory.mktemp("index")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    if subprocess.run([*command, "uv"], check=False, capture_output=True).returncode:
        miss("a package index that pip can reach")


@pytest.fixture(scope="session")
def trained(mnist, shared):
    """A project's folder in which the real stages trained the recipe `fast` on MNIST."""

    def make(folder: Path) -> None:
        project = Project.create(folder, {"download.folder": str(mnist)})
        project.run("python", "-m", "tools.recipe", "fast")
        project.run_stages("download", "preprocess", "train")

    return prepare(shared / "trained", make)


@pytest.fixture(scope="session")
def parameters():
    """The content of params.yaml, with the values on which tests depend."""
    return read_defaults()


@pytest.fixture(scope="session")
def model_with():
    """A function that returns the parameters of a small network, with the given ones changed."""
    return lambda **changes: make_sections({f"model.{key}": changes[key] for key in changes})[0]


@pytest.fixture(scope="session")
def train_with():
    """A function that returns parameters for one epoch, with the given ones changed.

    A group of parameters, such as `schedule`, keeps the values that are not given.
    """

    def make(**changes):
        values = {}
        for name, value in changes.items():
            group = value.items() if isinstance(value, dict) else [("", value)]
            values |= {f"train.{name}.{key}".rstrip("."): each for key, each in group}
        return make_sections(values)[1]

    return make


@pytest.fixture
def tiny_model(model_with):
    """A function that returns a small portable network for 28x28 images of ten classes."""
    from stages.model import architectures
    from stages.model.parallel import DataParallel

    def make(**changes):
        model = architectures.build(model_with(architecture="dense", **changes), (28, 28), 10)
        return DataParallel(model, 2)

    return make


@pytest.fixture
def small_split():
    """64 of scikit-learn's digits as a prepared split: images (64, 28, 28) and labels (64, 10)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    enlarged = np.pad(images[:64].reshape(-1, 8, 8), ((0, 0), (10, 10), (10, 10))) / 16
    return enlarged.astype(np.float32), np.eye(10, dtype=np.float32)[labels[:64]]
