"""The in-memory form of every data set. Training does not depend on the source of the data."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class Split:
    """Images of one split and five captions for each of them.

    Attributes:
        images: float32, ``[N, F]`` features, ``[N, R, F]`` features of R regions, or
            ``[N, 3, H, W]`` pixels in [0, 1].
        captions: ``5 * N`` captions; ``captions[5 * i : 5 * i + 5]`` describe image ``i``.
        names: ``N`` readable labels: a file name, or the first caption of a drawn scene.
    """

    images: NDArray[np.float32]
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.images)

    @property
    def has_pixels(self) -> bool:
        """Whether the images are pixels, which can be drawn, rather than features."""
        return self.images.ndim == 4

    @property
    def has_regions(self) -> bool:
        """Whether every image has features of several regions."""
        return self.images.ndim == 3


@dataclass(frozen=True)
class RetrievalData:
    """Three disjoint splits. Models are selected on ``dev``; ``test`` is for final results."""

    train: Split
    dev: Split
    test: Split

    def digest(self) -> str:
        """Return a hash of all images and captions; it does not depend on the path of the data."""
        found = sha256()
        for split in (self.train, self.dev, self.test):
            found.update(repr((split.images.shape, split.captions)).encode())
            found.update(np.ascontiguousarray(split.images).data)
        return found.hexdigest()
