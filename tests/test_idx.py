"""The IDX format: what is written is read back, and damaged files are refused."""

import numpy as np
import pytest
from helpers.checks import get_refusal
from helpers.damage import damaged, many_examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stages.core.errors import StageError
from stages.sources import idx

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("idx") / "images"


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)))
def test_array_is_read_back_as_written(path, array):
    path.write_bytes(idx.dump(array))
    found = idx.read(path, array.ndim)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array, strict=True)


@given(st.integers(0, 4))
def test_count_limits_the_entries(path, count):
    path.write_bytes(idx.dump(IMAGES))
    np.testing.assert_array_equal(idx.read(path, 3, count), IMAGES[:count], strict=True)


def test_header_follows_the_format_description():
    # Magic 2051 for images, then big-endian counts: train-images starts 0803 60000 28 28.
    assert idx.dump(IMAGES)[:16].hex(" ", 4) == "00000803 00000002 00000003 00000004"
    assert idx.dump(np.array([7, 9], np.uint8)).hex() == "00000801000000020709"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected IDX magic 00000803, found nothing"),
        (b"\0\0", "expected IDX magic 00000803, found 0000"),
        (idx.dump(IMAGES[0, 0]), "expected IDX magic 00000803, found 00000801"),
        (b"<!DOCTYPE html>", "expected IDX magic 00000803, found 3c21444f"),
        (idx.dump(IMAGES)[:15], "ends in its header, after 15 bytes"),
        (idx.dump(IMAGES)[:-1], "header says 2 x 3 x 4 bytes, found 23"),
        (idx.dump(IMAGES) + b"\0", "header says 2 x 3 x 4 bytes, found 25"),
        (b"\0\0\x08\x03\0\0\0\1\0\1\0\0\0\1\0\0", "header says 1 x 65536 x 65536 bytes, found 0"),
        (
            b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8,
            "not readable as IDX: array is too big",
        ),
        (b"\0\0\x08\x03" + b"\xff" * 12, "header says 4294967295 x 4294967295 x 4294967295 bytes"),
    ],
)
def test_file_that_contradicts_its_header_is_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(StageError, match=message) as caught:
        idx.read(path, 3)
    assert str(caught.value).startswith(f"{path}: ")


@many_examples
@given(damaged(idx.dump(IMAGES)) | st.binary(max_size=40))
def test_damaged_file_is_read_or_refused(path, content):
    path.write_bytes(content)
    try:
        found = idx.read(path, 3)
    except StageError:
        return
    assert idx.dump(found) == content


def test_missing_file_is_named_with_the_fix(tmp_path):
    with pytest.raises(StageError, match="images: not found; run `dvc repro` to create it"):
        idx.read(tmp_path / "images", 3)


def test_integer_labels_out_of_range_or_cut_off_are_named(path):
    """The file has the header and the first bytes of QMNIST's: 2 rows of 2 integers."""
    content = b"\0\0\x0c\2" + np.array([2, 2, 9, 0, -1, 0], ">i4").tobytes()
    path.write_bytes(content)
    assert get_refusal(idx.read_int_column, path).endswith("values from 0 to 255, found -1")
    path.write_bytes(content[:-1])
    assert get_refusal(idx.read_int_column, path).endswith("header says 2 x 2 x 4 bytes, found 15")
