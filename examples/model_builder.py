"""The encoders that fit the data and the options."""

import torch
from torch import Tensor

from dataset import CAPTIONS_PER_IMAGE, Split
from latent import latent_word_vectors
from models import DualEncoder, Encoder, FeatureEncoder, PixelEncoder, TextEncoder, Widths
from process_group import Processes
from regions import GridEncoder, RegionEncoder, WordEncoder

WORD_SCALE = 0.1  # standard deviation of the initial word vectors


def build_model(
    train: Split,
    words: Tensor,
    vocabulary: int,
    *,
    dim: int,
    reader: str,
    processes: Processes,
    chunk_size: int | None = None,
    regions: bool = False,
) -> DualEncoder:
    """Build the encoders that fit the data.

    Args:
        train: training split; its images select the image encoder.
        words: ``[5 N, L]`` padded word numbers of its captions.
        vocabulary: number of words.
        dim: size of the embedding.
        reader: ``"bow"`` or ``"gru"``.
        processes: those that share a batch.
        chunk_size: rows that are encoded at once; None encodes all.
        regions: encode every region and every word.

    Returns:
        A freshly initialised model.
    """
    image: Encoder
    if train.has_pixels:
        # Processes may have different numbers of chunks, so chunks are normalised separately.
        together = processes if chunk_size is None else Processes()
        of_pixels = GridEncoder if regions else PixelEncoder
        image = of_pixels(train.images.shape[2], dim, together)
        vectors = WORD_SCALE * torch.randn(vocabulary, 128)
        # Captions of scenes differ in single words: dropping one would make the caption false.
        word_dropout = 0.0
    else:
        of_features = RegionEncoder if regions else FeatureEncoder
        image = of_features(train.images.shape[-1], dim, dropout=0.4, processes=processes)
        vectors = latent_word_vectors(words, CAPTIONS_PER_IMAGE, vocabulary, 512, scale=WORD_SCALE)
        word_dropout = 0.2
    of_text = WordEncoder if regions else TextEncoder
    text = of_text(vectors, dim, reader=reader, word_dropout=word_dropout)
    widths = Widths(dim, image_tokens=dim, text_tokens=dim if regions else vectors.shape[1])
    return DualEncoder(image, text, widths, processes, chunk_size)
