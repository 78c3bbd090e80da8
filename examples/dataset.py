"""One in-memory form for every data set, so that training never asks where the data came from."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class Split:
    """Images of one split and five captions for each of them.

    Attributes:
        images: float32, ``[N, F]`` features or ``[N, 3, H, W]`` pixels in [0, 1].
        captions: ``5 * N`` captions; ``captions[5 * i : 5 * i + 5]`` describe image ``i``.
        names: ``N`` labels for people: a file name, or the first caption of a drawn scene.
    """

    images: NDArray[np.float32]
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.images)

    @property
    def has_pixels(self) -> bool:
        """Whether the images can be drawn on a page."""
        return self.images.ndim == 4


@dataclass(frozen=True)
class RetrievalData:
    """The three disjoint splits; models are chosen on ``dev``, ``test`` is for final figures."""

    train: Split
    dev: Split
    test: Split

    def digest(self) -> str:
        """Return a hash of every image and caption: equal data under any path has the same."""
        found = sha256()
        for split in (self.train, self.dev, self.test):
            found.update(repr((split.images.shape, split.captions)).encode())
            found.update(np.ascontiguousarray(split.images).data)
        return found.hexdigest()
