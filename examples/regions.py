"""Encoders of regions and words: a unit vector per region of an image and per word of a caption.

The embedding of an image or caption, for losses and negatives that need one, is the mean of these
vectors, scaled to norm 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import (
    CHANNELS,
    STRIDE,
    EncodedImages,
    EncodedTexts,
    Encoder,
    FeatureEncoder,
    TextEncoder,
    convolutions,
    mean_of_words,
    shifted,
)
from process_group import Processes
from vocabulary import PADDING


class RegionEncoder(FeatureEncoder):
    """Image encoder: a linear map of the standardised features of every region, as SCAN's.

    Dropout drops a feature in all regions of an image.
    """

    def prepare(self, regions: Tensor, rows: int, mine: slice) -> Tensor:
        """Return ``[N, R, F]`` features standardised and, in training, with dropout."""
        regions = self.standardise(regions.flatten(0, 1)).view_as(regions)
        if self.training:
            regions = regions * self.dropout(torch.ones(rows, 1, regions.shape[2]))[mine]
        return regions

    def forward(self, regions: Tensor) -> EncodedImages:
        """Encode prepared features; the tokens are the regions."""
        return _pooled(self.project(regions))


class GridEncoder(Encoder):
    """Image encoder: every cell of the last convolution's map is a region.

    A cell sees 15 pixels, so a learned vector per cell says where it is.

    Args:
        size: height and width of the square images, a multiple of 8.
        dim: D, size of a region's vector.
        processes: those whose rows are normalised together.
    """

    def __init__(self, size: int, dim: int, processes: Processes) -> None:
        super().__init__()
        self.convolve = convolutions(processes)
        self.project = nn.Linear(CHANNELS[-1], dim)
        self.places = nn.Parameter(dim**-0.5 * torch.randn((size // STRIDE) ** 2, dim))

    def prepare(self, images: Tensor, rows: int, mine: slice) -> Tensor:
        """Return ``[N, 3, H, W]`` pixels, shifted at random in training."""
        return shifted(images, rows, mine) if self.training else images

    def forward(self, images: Tensor) -> EncodedImages:
        """Encode prepared pixels; the tokens are the cells, row by row."""
        maps = self.convolve(images - 0.5)
        return _pooled(self.project(maps.flatten(2).transpose(1, 2)) + self.places)


class WordEncoder(TextEncoder):
    """Text encoder: a linear map of every word's vector or of the state of a GRU at this word."""

    def forward(self, words: Tensor) -> EncodedTexts:
        """Encode prepared word numbers; the tokens are the words."""
        padding = words == PADDING
        tokens = F.normalize(self.project(self.read_words(words, padding)), dim=2)
        return EncodedTexts(F.normalize(mean_of_words(tokens, padding), dim=1), tokens, padding)


def _pooled(regions: Tensor) -> EncodedImages:
    regions = F.normalize(regions, dim=2)
    return EncodedImages(F.normalize(regions.mean(1), dim=1), regions)
