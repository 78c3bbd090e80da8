"""Small dual encoders, which map images and captions to unit vectors in one space."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itm_kernels import chunked
from process_group import BatchNorm, Processes
from vocabulary import PADDING, UNKNOWN

CHANNELS = (3, 24, 48, 96)  # of pixels and of the maps after each convolution
STRIDE = 8  # pixels between positions of the last map
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


class Encoder(nn.Module, ABC):
    """An encoder of images or texts: `prepare` makes the random draws, the call encodes."""

    @abstractmethod
    def prepare(self, inputs: Tensor, rows: int, mine: slice) -> Tensor:
        """Prepare this process's inputs in a batch of `rows` rows, of which it has `mine`."""


class FeatureEncoder(Encoder):
    """Image encoder: a linear map of standardised features.

    Args:
        features: F, number of features per image.
        dim: D, size of the embedding.
        dropout: share of features dropped in training.
        processes: those that share a batch.
    """

    def __init__(self, features: int, dim: int, *, dropout: float, processes: Processes) -> None:
        super().__init__()
        self.standardise = BatchNorm(features, processes, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(features, dim)

    def prepare(self, images: Tensor, rows: int, mine: slice) -> Tensor:
        """Return ``[N, F]`` features standardised and, in training, with dropout."""
        images = self.standardise(images)
        if self.training:
            images = images * self.dropout(torch.ones(rows, images.shape[1]))[mine]
        return images

    def forward(self, images: Tensor) -> EncodedImages:
        """Encode prepared features; the single token is the vector before normalisation."""
        vectors = self.project(images)
        return EncodedImages(F.normalize(vectors, dim=1), vectors[:, None])


def convolutions(processes: Processes) -> nn.Sequential:
    """Return three strided convolutions, normalised over the rows of the processes."""
    layers: list[nn.Module] = []
    for narrow, wide in zip(CHANNELS, CHANNELS[1:], strict=False):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)]
        layers += [BatchNorm(wide, processes), nn.ReLU()]
    return nn.Sequential(*layers)


class PixelEncoder(Encoder):
    """Image encoder: three strided convolutions, flattened because positions matter here.

    Args:
        size: height and width of the square images, a multiple of 8.
        dim: D, size of the embedding.
        processes: those whose rows are normalised together.
    """

    def __init__(self, size: int, dim: int, processes: Processes) -> None:
        super().__init__()
        self.convolve = convolutions(processes)
        self.project = nn.Linear(CHANNELS[-1] * (size // STRIDE) ** 2, dim)
        self.project_tokens = nn.Linear(CHANNELS[-1], dim)

    def prepare(self, images: Tensor, rows: int, mine: slice) -> Tensor:
        """Return ``[N, 3, H, W]`` pixels, shifted at random in training."""
        return shifted(images, rows, mine) if self.training else images

    def forward(self, images: Tensor) -> EncodedImages:
        """Encode prepared pixels; tokens: the whole image, then every map position."""
        maps = self.convolve(images - 0.5)
        vectors = self.project(maps.flatten(1))
        places = self.project_tokens(maps.flatten(2).transpose(1, 2))
        tokens = torch.cat([vectors[:, None], places], dim=1)
        return EncodedImages(F.normalize(vectors, dim=1), tokens)


class TextEncoder(Encoder):
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

    def prepare(self, words: Tensor, rows: int, mine: slice) -> Tensor:
        """Return ``[N, L]`` padded word numbers, some of them unknown in training."""
        if not self.training or not self.word_dropout:
            return words
        dropped = torch.rand(rows, words.shape[1])[mine] < self.word_dropout
        return words.masked_fill(dropped & (words != PADDING), UNKNOWN)

    def forward(self, words: Tensor) -> EncodedTexts:
        """Encode prepared word numbers; the tokens are the vectors of the words."""
        padding = words == PADDING
        tokens = self.read_words(words, padding)
        mean = mean_of_words(tokens, padding)
        return EncodedTexts(F.normalize(self.project(mean), dim=1), tokens, padding)

    def read_words(self, words: Tensor, padding: Tensor) -> Tensor:
        """Return the vectors of the words ``[N, L, W]``."""
        tokens = self.embed(words)
        return tokens if self.read is None else self._read_in_order(tokens, padding)

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

    An encoder's `prepare(inputs, rows, mine)` makes the random draws for all `rows` of a batch and
    keeps those of the rows `mine`. Results thus depend neither on chunks nor on processes.

    Args:
        image: encoder of images, returns `EncodedImages`.
        text: encoder of padded word numbers, returns `EncodedTexts`.
        widths: their output sizes.
        processes: those that share a batch.
        chunk_size: rows that are encoded at once (`itm_kernels.chunked`); None encodes all.
    """

    def __init__(
        self,
        image: Encoder,
        text: Encoder,
        widths: Widths,
        processes: Processes,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.widths = widths
        self.processes = processes
        self.chunk_size = chunk_size

    def embeddings(self, images: Tensor, words: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return the embeddings of this process's images and texts in a batch of `rows` rows."""
        return (
            self._encode(self.image, images, rows, lambda inputs: self.image(inputs).embedding),
            self._encode(self.text, words, rows, lambda inputs: self.text(inputs).embedding),
        )

    def image_tokens(self, images: Tensor, rows: int) -> EncodedImages:
        """Encode this process's images in a batch of `rows` rows, with tokens."""
        return EncodedImages(
            *self._encode(self.image, images, rows, lambda inputs: tuple(self.image(inputs)))
        )

    def text_tokens(self, words: Tensor, rows: int) -> EncodedTexts:
        """Encode this process's texts in a batch of `rows` rows, with tokens."""
        return EncodedTexts(
            *self._encode(self.text, words, rows, lambda inputs: tuple(self.text(inputs)))
        )

    def _encode(
        self,
        encoder: Encoder,
        inputs: Tensor,
        rows: int,
        encode: Callable[[Tensor], Any],
    ) -> Any:
        inputs = encoder.prepare(inputs, rows, self.processes.share(rows))
        if self.chunk_size is None:
            return encode(inputs)
        return chunked(encode, inputs, chunk_size=self.chunk_size)

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
        sides = (self.image, images), (self.text, words)
        vectors = [self._collect(*side, "embedding", rows) for side in sides]
        return vectors[0], vectors[1]

    @torch.inference_mode()
    def embed_tokens(
        self, images: Tensor, words: Tensor, *, rows: int = 500
    ) -> tuple[Tensor, Tensor]:
        """Encode a whole split in evaluation mode, as `embed`, and return the tokens.

        Returns:
            ``[N, P, D]`` and ``[M, L, W]``; tokens of padding are arbitrary.
        """
        sides = (self.image, images), (self.text, words)
        tokens = [self._collect(*side, "tokens", rows) for side in sides]
        return tokens[0], tokens[1]

    def _collect(self, encoder: Encoder, inputs: Tensor, part: str, rows: int) -> Tensor:
        """Return a part of an encoder's outputs in evaluation mode."""
        training = encoder.training
        encoder.eval()
        found = [
            getattr(encoder(encoder.prepare(some, len(some), slice(None))), part)
            for some in inputs.split(rows)
        ]
        encoder.train(training)
        return torch.cat(found)


def mean_of_words(tokens: Tensor, padding: Tensor) -> Tensor:
    """Return the mean ``[N, W]`` of the vectors ``[N, L, W]`` that are not padding."""
    kept = (~padding).unsqueeze(2).to(tokens.dtype)
    return (tokens * kept).sum(1) / kept.sum(1)


def shifted(images: Tensor, rows: int, mine: slice) -> Tensor:
    """Move every image by up to `LARGEST_SHIFT` pixels on each axis, repeating its border.

    The shifts of a batch of `rows` rows are drawn; `mine` are those of the images.
    """
    shifts = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, rows, 1))[:, mine]
    count, _, height, width = images.shape
    padded = F.pad(images, (LARGEST_SHIFT,) * 4, mode="replicate")
    lines = (torch.arange(height) + shifts[0])[:, :, None]
    columns = (torch.arange(width) + shifts[1])[:, None, :]
    return padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], lines, columns].permute(
        0, 3, 1, 2
    )
