"""Reader of VSE++'s "precomp" layout: an array of image features, five captions for each image.

For each of the splits train, dev and test a directory holds:

  train_ims.npy    real numbers [N, F], one row of features per image, or every row repeated five
                   times in succession, as in VSE++'s own files; [N, R, F] for --encoder regions:
                   one row for each of R regions of an image, as in the files of SCAN and SGRAF
  train_caps.txt   UTF-8, one caption per line, 5 N lines: lines 5 i to 5 i + 4 (from 0) describe
                   image i
  train_names.txt  optional, one name per image
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset import CAPTIONS_PER_IMAGE, RetrievalData, Split


def load_precomp(directory: Path) -> RetrievalData:
    """Read the three splits of a directory in the precomp layout.

    Args:
        directory: folder of the nine (or six) files.

    Returns:
        Features as float32 ``[N, F]`` or ``[N, R, F]``, one entry per image, with their captions.

    Raises:
        ValueError: a file is missing, damaged or inconsistent with the others. The message names
            the file and the expected content.
    """
    if not directory.is_dir():
        raise ValueError(f"load_precomp: {directory} is not a directory")
    splits = [load_split(directory, name) for name in ("train", "dev", "test")]
    dimensions = [split.images.ndim for split in splits]
    if len(set(dimensions)) > 1:
        raise ValueError(
            f"load_precomp: {directory}: arrays of train, dev and test have {dimensions} "
            "dimensions; expected [N, F] in all three, or [N, R, F] in all three"
        )
    widths = [split.images.shape[-1] for split in splits]
    if len(set(widths)) > 1:
        raise ValueError(
            f"load_precomp: {directory}: features of train, dev and test have {widths} columns; "
            "expected the same number in all three"
        )
    return RetrievalData(*splits)


def load_split(directory: Path, name: str) -> Split:
    """Read one split.

    Args:
        directory: folder of the files.
        name: ``"train"``, ``"dev"`` or ``"test"``.

    Returns:
        The split, one row per image.

    Raises:
        ValueError: as `load_precomp`.
    """
    features_path = directory / f"{name}_ims.npy"
    captions_path = directory / f"{name}_caps.txt"
    captions = _read_captions(captions_path)
    features = _one_row_per_image(_read_features(features_path), features_path, captions)
    names_path = directory / f"{name}_names.txt"
    if names_path.exists():
        names = _read_lines(names_path)
        if len(names) != len(features):
            raise ValueError(
                f"load_precomp: {names_path}: {len(names)} lines; expected one for each of the "
                f"{len(features)} images"
            )
    else:
        names = [f"{name} image {row}" for row in range(len(features))]
    return Split(features, captions, names)


def _read_features(path: Path) -> NDArray[np.float32]:
    if not path.is_file():
        raise ValueError(f"load_precomp: {path} is missing; expected an array [N, F] of features")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"load_precomp: {path} is not a .npy array of numbers ({error})"
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(
            f"load_precomp: {path} is an .npz archive of {', '.join(array.files[:5])}; "
            "expected one array [N, F], as numpy.save writes it"
        )
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"load_precomp: {path}: shape {list(array.shape)}; expected [N, F], "
            "one row of features per image, or [N, R, F], one for each of R regions"
        )
    if array.dtype.kind not in "fiu":
        raise ValueError(f"load_precomp: {path}: dtype {array.dtype}; expected real numbers")
    with np.errstate(over="ignore"):  # values beyond float32 become Inf, rejected below
        features = array.astype(np.float32, copy=False)
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"load_precomp: {path}: {int((~finite).sum())} rows hold NaN or Inf (first: row "
            f"{int(np.argmin(finite))}); expected finite float32 values"
        )
    return features


def _one_row_per_image(
    features: NDArray[np.float32], path: Path, captions: list[str]
) -> NDArray[np.float32]:
    """Reduce five equal rows per image to one, if there are as many rows as captions."""
    rows, lines = len(features), len(captions)
    if lines == CAPTIONS_PER_IMAGE * rows:
        return features
    if lines == rows and rows % CAPTIONS_PER_IMAGE == 0:
        groups = features.reshape(-1, CAPTIONS_PER_IMAGE, *features.shape[1:])
        unequal = (groups != groups[:, :1]).reshape(len(groups), -1)
        differing = np.flatnonzero(unequal.any(axis=1))
        if len(differing):
            first = CAPTIONS_PER_IMAGE * int(differing[0])
            raise ValueError(
                f"load_precomp: {path}: rows {first} to {first + CAPTIONS_PER_IMAGE - 1} differ; "
                "with as many rows as captions, every image's row must be repeated five times"
            )
        return np.ascontiguousarray(groups[:, 0])
    raise ValueError(
        f"load_precomp: {path}: {rows} rows for {lines} captions; expected {lines / 5:g} rows "
        f"(one per image) or {lines} (each image repeated five times)"
    )


def _read_captions(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"load_precomp: {path} is missing; expected a text file with five captions per image"
        )
    captions = _read_lines(path)
    for number, caption in enumerate(captions, start=1):
        if not caption.strip():
            raise ValueError(f"load_precomp: {path}: line {number} is empty; expected a caption")
    if not captions or len(captions) % CAPTIONS_PER_IMAGE:
        raise ValueError(
            f"load_precomp: {path}: {len(captions)} captions; expected a positive multiple of "
            f"{CAPTIONS_PER_IMAGE}, five for every image"
        )
    return captions


def _read_lines(path: Path) -> list[str]:
    """Split at line feeds only, because captions may contain other Unicode separators.

    A byte-order mark and blank lines at the end, which editors leave, are ignored.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"load_precomp: {path}: byte {error.start} is not UTF-8; expected UTF-8 text"
        ) from error
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
