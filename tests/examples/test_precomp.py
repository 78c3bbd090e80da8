"""The precomp reader: both layouts are read, and every damage is named with its file."""

from pathlib import Path

import numpy as np
import pytest

from precomp import load_precomp

IMAGES = {"train": 4, "dev": 2, "test": 3}
FEATURES = 6


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, count in IMAGES.items():
        np.save(tmp_path / f"{name}_ims.npy", generator.random((count, FEATURES)).astype("f2"))
        lines = [f"caption {line} of {name}" for line in range(5 * count)]
        (tmp_path / f"{name}_caps.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_one_row_per_image(directory):
    data = load_precomp(directory)
    for name, count in IMAGES.items():
        split = getattr(data, name)
        assert split.images.shape == (count, FEATURES) and split.images.dtype == np.float32
        assert len(split.captions) == 5 * count and len(split.names) == count
        assert split.captions[5] == f"caption 5 of {name}"
        assert not split.has_pixels


def test_five_equal_rows_per_image_are_reduced_to_one(directory):
    expected = load_precomp(directory).dev.images
    np.save(directory / "dev_ims.npy", np.repeat(expected, 5, axis=0))
    np.testing.assert_array_equal(load_precomp(directory).dev.images, expected)


def test_names_are_read_where_they_exist(directory):
    (directory / "dev_names.txt").write_text("one.jpg\ntwo.jpg\n")
    data = load_precomp(directory)
    assert data.dev.names == ["one.jpg", "two.jpg"]
    assert data.test.names[2] == "test image 2"


def test_captions_keep_their_letters_and_unusual_line_separators(directory):
    lines = ["Ein Mädchen läuft", "two\u2028parts", "windows\r", "a", "b"] * 2
    (directory / "dev_caps.txt").write_bytes("\n".join(lines).encode())
    captions = load_precomp(directory).dev.captions
    assert captions[:3] == ["Ein Mädchen läuft", "two\u2028parts", "windows"]


def test_a_byte_order_mark_and_blank_lines_at_the_end_do_not_count(directory):
    expected = load_precomp(directory)
    for name, ending in {"dev": "\n", "test": "\r\n \n\n"}.items():
        path = directory / f"{name}_caps.txt"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + ending.encode())
    (directory / "dev_names.txt").write_bytes(b"\xef\xbb\xbfone.jpg\r\ntwo.jpg\r\n\r\n")
    found = load_precomp(directory)
    assert found.dev.captions == expected.dev.captions
    assert found.test.captions == expected.test.captions
    assert found.dev.names == ["one.jpg", "two.jpg"]


def test_an_archive_named_npy_is_an_error(directory):
    with open(directory / "dev_ims.npy", "wb") as file:
        np.savez(file, features=np.zeros((2, 6)), names=np.zeros(2))
    with pytest.raises(ValueError, match=r"dev_ims\.npy is an \.npz archive of features, names; "):
        load_precomp(directory)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(6, "f4"), r"dev_ims\.npy: shape \[6\]; expected \[N, F\]"),
        (np.zeros((2, 0), "f4"), r"dev_ims\.npy: shape \[2, 0\]; expected \[N, F\]"),
        (np.zeros((2, 6), "c8"), r"dev_ims\.npy: dtype complex64; expected real numbers"),
        (np.array([["a"], ["b"]]), r"dev_ims\.npy: dtype <U1; expected real numbers"),
        (np.zeros((3, 6), "f4"), r"dev_ims\.npy: 3 rows for 10 captions; expected 2 rows .* or 10"),
        (np.array([[0] * 6, [np.nan] * 6]), r"dev_ims\.npy: 1 rows hold NaN or Inf \(first: row 1"),
        (np.array([[np.inf] * 6, [0] * 6]), r"dev_ims\.npy: 1 rows hold NaN or Inf \(first: row 0"),
        (np.full((2, 6), 1e300), r"dev_ims\.npy: 2 rows hold NaN or Inf .* finite float32 values"),
        (
            np.arange(60.0).reshape(10, 6),
            r"dev_ims\.npy: rows 0 to 4 differ; .* repeated five times",
        ),
        (
            np.zeros((2, 5), "f4"),
            r"have \[6, 5, 6\] columns; expected the same number in all three",
        ),
    ],
)
def test_a_damaged_array_is_named(directory, array, message):
    np.save(directory / "dev_ims.npy", array)
    with pytest.raises(ValueError, match=message):
        load_precomp(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"dev_caps\.txt: 0 captions; expected a positive multiple of 5"),
        (b"a\nb\nc\n", r"dev_caps\.txt: 3 captions; expected a positive multiple of 5"),
        (b"a\nb\n \nd\ne\n", r"dev_caps\.txt: line 3 is empty; expected a caption"),
        (b"a\nb\nc\nd\n\xff\n", r"dev_caps\.txt: byte 8 is not UTF-8; expected UTF-8 text"),
    ],
)
def test_a_damaged_caption_file_is_named(directory, content, message):
    (directory / "dev_caps.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_precomp(directory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dev_ims.npy", r"dev_ims\.npy is missing; expected an array \[N, F\]"),
        ("test_caps.txt", r"test_caps\.txt is missing; expected a text file with five captions"),
    ],
)
def test_a_missing_file_is_named(directory, name, message):
    (directory / name).unlink()
    with pytest.raises(ValueError, match=message):
        load_precomp(directory)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_file_that_is_no_array_is_named(directory, content):
    (directory / "train_ims.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"train_ims\.npy is not a \.npy array of numbers"):
        load_precomp(directory)


def test_pickled_objects_are_refused(directory):
    np.save(directory / "train_ims.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"train_ims\.npy is not a \.npy array of numbers"):
        load_precomp(directory)


def test_a_wrong_number_of_names_is_an_error(directory):
    (directory / "dev_names.txt").write_text("only one\n")
    with pytest.raises(
        ValueError, match=r"dev_names\.txt: 1 lines; expected one for each of the 2"
    ):
        load_precomp(directory)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        load_precomp(tmp_path / "nowhere")
