"""Your own images and Fashion-MNIST from end to end, and sharing data and model.

The commands come from docs/sharing.md, with other addresses.
"""

import asyncio
import getpass
import json
import re
import shutil
import threading
from pathlib import Path

import asyncssh
import numpy as np
import pandas as pd
import pytest
from helpers.pages import find_quoted_commands
from helpers.project import ROOT, SMALL, STAGES, Project, list_outputs, read_graph
from PIL import Image
from sklearn.datasets import load_digits

from dvc_verify.lockfile import compute_md5
from stages.sources import idx
from stages.sources.catalogue import CATALOGUE, TEST_IMAGES
from stages.sources.fetch import has_expected_hash
from tools.model_card import make_card

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("test_sharing")]

PAGE = ROOT / "docs/sharing.md"
MODEL = "data/model/model.keras"
ROTATIONS = ("upright", "to the left", "upside down", "to the right")
CLASSES = [f"{digit} {rotation}" for digit in (2, 4, 5, 7) for rotation in sorted(ROTATIONS)]

# As datasets/README.md says: fewer groups of convolutions for small images, and no shift.
OWN = SMALL | {
    "download.dataset": "custom",
    "download.folder": "datasets/mine",
    "model.architecture": "convolutional",
    "model.filters": [[24]],
    "model.hidden_units": [64],
    "train.augmentation.shift": 0.0,
    "train.augmentation.rotation": 0.0,
    "train.augmentation.zoom": 0.0,
    "train.optimizer": "adam",
    "train.learning_rate": 0.006,
    "train.batch_size": 16,
    "train.epochs": 6,
}


def draw(folder: Path) -> None:
    """Save images of 10x8 pixels: four of scikit-learn's digits, each rotated in four ways."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 255 // 16).astype(np.uint8)
    for digit in (2, 4, 5, 7):
        for i, image in enumerate(images[labels == digit][:60]):
            for quarters, rotation in enumerate(ROTATIONS):
                place = folder / ("train" if i < 45 else "test") / f"{digit} {rotation}"
                place.mkdir(parents=True, exist_ok=True)
                wide = np.pad(np.rot90(image, quarters), ((0, 0), (1, 1)))
                Image.fromarray(wide).save(place / f"{i}.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project after its first run on a dataset of image files, committed."""
    project = Project.create(tmp_path_factory.mktemp("project"), OWN)
    draw(project.folder / "datasets/mine")
    assert project.repro() == STAGES
    project.commit("own dataset")
    return project


def metrics(project: Project) -> dict:
    return json.loads((project.folder / "data/evaluation/metrics.json").read_text())


# Datasets


def test_own_images_are_classified(project):
    found = metrics(project)["test"]
    assert found["accuracy"] > 0.85  # of sixteen classes
    per_class = pd.read_csv(project.folder / "data/evaluation/per_class.csv")
    assert sorted(per_class["class"]) == CLASSES
    table = pd.read_csv(project.folder / "data/evaluation/predictions.csv")
    assert set(table["actual"]) | set(table["predicted"]) == set(CLASSES)
    with np.load(project.folder / "data/processed/test.npz") as arrays:
        assert arrays["images"].shape == (240, 8, 10)
        assert arrays["labels"].shape == (240, 16)


def test_changed_image_reruns_download(project):
    path = project.folder / "datasets/mine/train/2 upright/0.png"
    before = path.read_bytes()
    Image.new("L", (10, 8)).save(path)
    changed = json.loads(project.run("dvc", "status", "--json", "download").stdout)
    assert changed == {"download": [{"changed deps": {"datasets": "modified"}}]}
    path.write_bytes(before)
    assert project.run("dvc", "status", "--json", "download").stdout.strip() == "{}"


def test_fashion_mnist_replaces_the_other_dataset(first_run, fashion_mnist, tmp_path):
    clone = Project(first_run / "project").copy(tmp_path / "clone")
    clone.set(
        {
            "download.dataset": "fashion_mnist",
            "download.folder": str(fashion_mnist),
            "preprocess.validation_fraction": 0.8,  # fewer training images are faster
            "model.hidden_units": [64],
            "train.augmentation": {"shift": 0.0, "rotation": 0.0, "zoom": 0.0},
        }
    )
    clone.run("dvc", "repro", "download")
    clone.run_stages(*STAGES[1:])
    dataset = CATALOGUE["fashion_mnist"]
    assert all(
        has_expected_hash(clone.folder / "data/raw" / file.name, file) for file in dataset.files
    )
    found = metrics(clone)["test"]
    assert found["accuracy"] > 0.78
    per_class = pd.read_csv(clone.folder / "data/evaluation/per_class.csv")
    assert tuple(per_class["class"]) == tuple(dataset.classes)
    table = pd.read_csv(clone.folder / "data/evaluation/predictions.csv")
    assert set(table["predicted"]) <= set(dataset.classes)
    assert len(table) == len(idx.read(clone.folder / "data/raw" / TEST_IMAGES, 3)) == 10_000


def test_dataset_in_dvc_reaches_clones(project, tmp_path):
    """Under `make verify` and `make seeds`, in a folder of a larger repository."""
    whole, course = Project(tmp_path / "whole"), Project(tmp_path / "whole/course")
    whole.folder.mkdir()
    project.copy(course.folder)
    shutil.rmtree(course.folder / ".git")
    whole.run("git", "init", "-q", "--initial-branch=main")
    course.run("dvc", "add", "datasets/mine")
    assert course.repro() == ["download"]  # with the same outputs
    whole.commit("dataset in DVC")
    assert course.run("python", "-m", "dvc_verify").stdout.endswith("\nidentical\n")
    (whole.folder / "neighbour.txt").write_text("not of the project")
    assert "# 2 seeds of" in course.run("python", "-m", "tools.seeds", "2").stdout


# Sharing


def test_export_is_compared_on_the_test_images(project):
    ended = project.run("python", "-m", "tools.export")
    onnx, tflite, older, _ = ended.stdout.splitlines()
    assert onnx.startswith("model.onnx: same prediction as Keras for 100.00% of 240 test images")
    assert tflite.startswith(
        "model.tflite: same prediction as Keras for 100.00% of 240 test images"
    )
    assert older.startswith("model.keras: same prediction as Keras for 100.00% of 240 test images")
    folder = project.folder / "data/export"
    assert {path.name for path in folder.iterdir()} == {
        "classes.txt",
        "model.keras",
        "model.onnx",
        "model.tflite",
    }
    assert sorted((folder / "classes.txt").read_text().splitlines()) == CLASSES
    assert project.run("git", "status", "--short").stdout == ""


def test_model_card_describes_this_dataset(project):
    text = make_card(project.folder)
    rows = re.findall(r"^\| (\d .*?) \| 15 \| \d", text, re.M)
    assert sorted(rows) == CLASSES
    assert f"{metrics(project)['test']['accuracy']:.2%}" in text
    assert compute_md5(project.folder / MODEL) in text
    assert "720 images for training" in text
    assert "MNIST" not in text


def commands(heading: str, names: dict[str, str] | None = None) -> list[list[str]]:
    """Return the commands below a heading of docs/sharing.md, with other addresses."""
    return [command for command, _ in find_quoted_commands(PAGE, heading, names)]


def clone(project: Project, folder: Path) -> Path:
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    return folder


@pytest.fixture(scope="module")
def pushed(project, tmp_path_factory):
    """The project with a shared folder as its remote, already pushed."""
    remote = tmp_path_factory.mktemp("remote")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@localhost")
    for heading in ("A shared folder", "For your team"):
        for command in commands(heading, {"/mnt/team/mnist": str(remote)}):
            project.run(*command)
    (push,) = commands("Push and pull")[:1]
    project.run(*push)
    return project


def test_another_clone_pulls(pushed, tmp_path):
    folder = clone(pushed, tmp_path / "clone")
    _, everything, model = commands("Push and pull")
    pushed.run(*model, cwd=folder)
    assert compute_md5(folder / MODEL) == compute_md5(pushed.folder / MODEL)
    assert not (folder / "data/processed/train.npz").exists()
    pushed.run(*everything, cwd=folder)
    for name in list_outputs(read_graph()["preprocess"]):
        assert compute_md5(folder / name) == compute_md5(pushed.folder / name)


def test_repro_fetches_and_runs_the_rest(pushed, tmp_path):
    folder = clone(pushed, tmp_path / "clone")
    fetch, fetch_little = commands("Reproduce and fetch missing files")
    parameters = folder / "params.yaml"
    parameters.write_text(parameters.read_text().replace("dpi: 60", "dpi: 61"))
    ended = pushed.run(*fetch_little, cwd=folder)
    assert re.findall(r"^Running stage '(\w+)'", ended.stdout, re.M) == ["plot"]
    assert (folder / "data/processed/test.npz").exists()
    assert not (folder / "data/processed/train.npz").exists()
    pushed.run("git", "checkout", "-q", ".", cwd=folder)
    ended = pushed.run(*fetch, cwd=folder)
    assert "Running stage" not in ended.stdout
    assert (folder / "data/processed/train.npz").exists()
    assert pushed.run("git", "status", "--short", cwd=folder).stdout == ""


def test_model_is_found_by_name_and_version(pushed, tmp_path):
    places = {"https://git.example.org/mnist.git": str(pushed.folder), "origin": "."}
    *tag, newest, version, without = commands("Share the model", places)
    for command in tag:
        pushed.run(*command)
    for command, name in ((newest, "model.keras"), (version, "v1.keras")):
        pushed.run(*command, cwd=tmp_path)
        assert compute_md5(tmp_path / name) == compute_md5(pushed.folder / MODEL)
    (tmp_path / "model.keras").unlink()
    pushed.run(*without, cwd=tmp_path)
    assert compute_md5(tmp_path / "model.keras") == compute_md5(pushed.folder / MODEL)


@pytest.fixture
def ssh_server(tmp_path):
    """An SSH server on loopback: its port, the folder it serves and the key it accepts."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "served").mkdir()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,  # any free port
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=asyncssh.import_authorized_keys(
                key.export_public_key().decode()
            ),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=tmp_path / "served"),
        )

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield server.get_port(), tmp_path / "served", tmp_path / "key"
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_push_and_pull_over_ssh(project, ssh_server, tmp_path):
    port, served, key = ssh_server
    places = {
        "server.example.org": f"127.0.0.1:{port}",
        "~/.ssh/id_ed25519": str(key),
        "alice": getpass.getuser(),
    }
    _, *settings = commands("SSH", places)
    push, pull, _ = commands("Push and pull")
    first, second = (clone(project, tmp_path / name) for name in ("first", "second"))
    (first / ".dvc/config").write_bytes((ROOT / ".dvc/config").read_bytes())  # without a remote
    for command in settings:
        project.run(*command, cwd=first)
    for name in ("config", "config.local"):
        (second / ".dvc" / name).write_bytes((first / ".dvc" / name).read_bytes())
    with (first / ".dvc/config.local").open("a") as config_file:
        config_file.write(f"[cache]\n    dir = {project.folder / '.dvc/cache'}\n")
    project.run(*push, cwd=first)
    assert any(served.rglob(compute_md5(project.folder / MODEL)[2:]))
    project.run(*pull, cwd=second)
    assert compute_md5(second / MODEL) == compute_md5(project.folder / MODEL)
    config = (first / ".dvc/config").read_text()
    assert f"ssh://127.0.0.1:{port}/srv/mnist" in config
    assert str(key) not in config
