"""Small dual encoders, which map images and captions to unit vectors in one space."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import CAPTIONS_PER_IMAGE, Split
from latent import latent_word_vectors
from vocabulary import PADDING, UNKNOWN

WORD_SCALE = 0.1  # standard deviation of the initial word vectors
LARGEST_SHIFT = 2  # pixels; scenes leave about this margin free


class EncodedImages(NamedTuple):
    """Output of an image encoder: embeddings for retrieval, tokens for a fusion head."""

    embedding: Tensor  # [N, D], unit vectors
    tokens: Tensor  # [N, P, D], the whole image first


class EncodedTexts(NamedTuple):
    """Output of a text encoder: embeddings for retrieval, tokens for a fusion head."""

    embedding: Tensor  # [N, D], unit vectors
    tokens: Tensor  # [N, L, W]
    padding: Tensor  # [N, L], True where a token is padding


class Widths(NamedTuple):
    """Output sizes of the encoders, for objectives that have their own heads."""

    embedding: int
    image_tokens: int
    text_tokens: int


class FeatureEncoder(nn.Module):
    """Image encoder: a linear map of standardised features.

    Args:
        features: F, number of features per image.
        dim: D, size of the embedding.
        dropout: share of features dropped in training.
    """

    def __init__(self, features: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(features, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(features, dim)

    def forward(self, images: Tensor) -> EncodedImages:
        """Encode ``[N, F]`` features; the single token is the vector before normalisation."""
        vectors = self.project(self.dropout(self.standardise(images)))
        return EncodedImages(F.normalize(vectors, dim=1), vectors[:, None])


class PixelEncoder(nn.Module):
    """Image encoder: three strided convolutions, flattened because positions matter here.

    Args:
        size: height and width of the square images, a multiple of 8.
        dim: D, size of the embedding.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(wide), nn.ReLU()]
        self.convolve = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1] * (size // 8) ** 2, dim)
        self.project_tokens = nn.Linear(widths[-1], dim)

    def forward(self, images: Tensor) -> EncodedImages:
        """Encode ``[N, 3, H, W]`` pixels; tokens: the whole image, then every map position."""
        if self.training:
            images = _shift_at_random(images)
        maps = self.convolve(images - 0.5)
        vectors = self.project(maps.flatten(1))
        places = self.project_tokens(maps.flatten(2).transpose(1, 2))
        tokens = torch.cat([vectors[:, None], places], dim=1)
        return EncodedImages(F.normalize(vectors, dim=1), tokens)


class TextEncoder(nn.Module):
    """Text encoder: the mean of word vectors or of a bidirectional GRU's states.

    Args:
        first_vectors: ``[V, W]`` initial word vectors; W is even and the size of a token.
        dim: D, size of the embedding.
        reader: ``"bow"`` averages the word vectors (a bag of words), ``"gru"`` the states.
        word_dropout: share of words replaced by the unknown word in training.
    """

    def __init__(
        self, first_vectors: Tensor, dim: int, *, reader: str, word_dropout: float
    ) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        word_dim = first_vectors.shape[1]
        self.embed = nn.Embedding.from_pretrained(first_vectors, freeze=False, padding_idx=PADDING)
        self.read = None
        if reader == "gru":
            self.read = nn.GRU(word_dim, word_dim // 2, batch_first=True, bidirectional=True)
        self.project = nn.Linear(word_dim, dim)

    def forward(self, words: Tensor) -> EncodedTexts:
        """Encode ``[N, L]`` padded word numbers; the tokens are the vectors of the words."""
        padding = words == PADDING
        if self.training and self.word_dropout:
            dropped = (torch.rand(words.shape) < self.word_dropout) & ~padding
            words = words.masked_fill(dropped, UNKNOWN)
        tokens = self.embed(words)
        if self.read is not None:
            tokens = self._read_in_order(tokens, padding)
        kept = (~padding).unsqueeze(2).to(tokens.dtype)
        mean = (tokens * kept).sum(1) / kept.sum(1)
        return EncodedTexts(F.normalize(self.project(mean), dim=1), tokens, padding)

    def _read_in_order(self, tokens: Tensor, padding: Tensor) -> Tensor:
        assert self.read is not None
        packed = nn.utils.rnn.pack_padded_sequence(
            tokens, (~padding).sum(1), batch_first=True, enforce_sorted=False
        )
        states, _ = self.read(packed)
        return nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=tokens.shape[1]
        )[0]


class DualEncoder(nn.Module):
    """An image encoder and a text encoder into one space.

    Args:
        image: encoder of images, returns `EncodedImages`.
        text: encoder of padded word numbers, returns `EncodedTexts`.
        widths: their output sizes.
    """

    def __init__(self, image: nn.Module, text: nn.Module, widths: Widths) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.widths = widths

    @torch.inference_mode()
    def embed(self, images: Tensor, words: Tensor, *, rows: int = 500) -> tuple[Tensor, Tensor]:
        """Encode a whole split in evaluation mode.

        Args:
            images: ``[N, ...]`` features or pixels.
            words: ``[M, L]`` padded word numbers.
            rows: number of rows encoded at once, which bounds the memory.

        Returns:
            Unit vectors ``[N, D]`` and ``[M, D]``.
        """
        training = self.training
        self.eval()
        vectors = [
            torch.cat([encode(part).embedding for part in everything.split(rows)])
            for encode, everything in ((self.image, images), (self.text, words))
        ]
        self.train(training)
        return vectors[0], vectors[1]


def build_model(
    train: Split, words: Tensor, vocabulary: int, *, dim: int, reader: str
) -> DualEncoder:
    """Build the encoders that fit the data.

    Args:
        train: training split; its images select one of the two image encoders.
        words: ``[5 N, L]`` padded word numbers of its captions.
        vocabulary: number of words.
        dim: size of the embedding.
        reader: ``"bow"`` or ``"gru"``.

    Returns:
        A freshly initialised model.
    """
    image: nn.Module
    if train.has_pixels:
        image = PixelEncoder(train.images.shape[2], dim)
        vectors = WORD_SCALE * torch.randn(vocabulary, 128)
        # Captions of scenes differ in single words: dropping one would make the caption false.
        word_dropout = 0.0
    else:
        image = FeatureEncoder(train.images.shape[1], dim, dropout=0.4)
        vectors = latent_word_vectors(words, CAPTIONS_PER_IMAGE, vocabulary, 512, scale=WORD_SCALE)
        word_dropout = 0.2
    text = TextEncoder(vectors, dim, reader=reader, word_dropout=word_dropout)
    return DualEncoder(image, text, Widths(dim, image_tokens=dim, text_tokens=vectors.shape[1]))


def _shift_at_random(images: Tensor) -> Tensor:
    """Move every image by up to `LARGEST_SHIFT` pixels on each axis, repeating its border."""
    count, _, height, width = images.shape
    padded = F.pad(images, (LARGEST_SHIFT,) * 4, mode="replicate")
    shifts = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, count, 1))
    rows = (torch.arange(height) + shifts[0])[:, :, None]
    columns = (torch.arange(width) + shifts[1])[:, None, :]
    return padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns].permute(
        0, 3, 1, 2
    )
