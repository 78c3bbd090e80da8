"""Initial word vectors from the training captions only: latent semantic analysis."""

import torch
from torch import Tensor

from vocabulary import PADDING, UNKNOWN


def latent_word_vectors(
    words: Tensor, captions_per_image: int, vocabulary: int, dim: int, *, scale: float
) -> Tensor:
    """Factorise the image-word matrix, so that words of similar images start with similar vectors.

    Entries are ``log(1 + count) * idf``, with rows of unit norm. A word's vector is its right
    singular vector times the square roots of the singular values and of its idf. A few thousand
    captions are too few to learn rare words from gradients: this initialisation helps more than a
    longer run.

    Args:
        words: ``[5 N, L]`` padded word numbers of the training captions.
        captions_per_image: number of consecutive captions that describe one image.
        vocabulary: number of words V, including padding and the unknown word.
        dim: size of a vector; dimensions beyond the rank of the matrix are zero.
        scale: standard deviation of the result.

    Returns:
        ``[V, dim]`` float32, zero for padding and the unknown word.
    """
    images = words.reshape(-1, captions_per_image * words.shape[1])
    count = len(images)
    known = (images != PADDING) & (images != UNKNOWN)
    places = torch.stack([known.nonzero()[:, 0], images[known]])
    table = torch.sparse_coo_tensor(
        places, torch.ones(places.shape[1]), (count, vocabulary), check_invariants=True
    ).coalesce()
    image, word = table.indices()
    idf = (count / (1 + word.bincount(minlength=vocabulary))).log().clamp_min(0)
    idf[[PADDING, UNKNOWN]] = 0
    values = table.values().log1p() * idf[word]
    norms = torch.zeros(count).index_add(0, image, values.square()).sqrt().clamp_min(1e-12)
    table = torch.sparse_coo_tensor(
        table.indices(), values / norms[image], table.shape, check_invariants=True
    )
    rank = min(dim, *table.shape)
    _, strengths, directions = torch.svd_lowrank(table, rank, niter=3)
    vectors = torch.zeros(vocabulary, dim)
    vectors[:, :rank] = directions * strengths.sqrt() * idf.sqrt()[:, None]
    return vectors * (scale / vectors[UNKNOWN + 1 :].std().clamp_min(1e-12))
