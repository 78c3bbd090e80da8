"""First word vectors from the training captions alone: latent semantic analysis."""

import torch
from torch import Tensor

from vocabulary import PADDING, UNKNOWN


def latent_word_vectors(
    words: Tensor, captions_per_image: int, vocabulary: int, dim: int, *, scale: float
) -> Tensor:
    """Factorise the table of images and words, so that words of like images start alike.

    Entries are ``log(1 + count) * idf``, rows of unit length; a word's vector is its right singular
    vector times the square roots of its singular values and its idf. A few thousand captions are
    too little to learn a rare word from gradients: this start is worth more than a longer run.

    Args:
        words: ``[5 N, L]`` padded word numbers of the training captions.
        captions_per_image: consecutive captions that tell of one image.
        vocabulary: number of words V, padding and the unknown word included.
        dim: size of a vector; what exceeds the table's rank is zero.
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
    lengths = torch.zeros(count).index_add(0, image, values.square()).sqrt().clamp_min(1e-12)
    table = torch.sparse_coo_tensor(
        table.indices(), values / lengths[image], table.shape, check_invariants=True
    )
    rank = min(dim, *table.shape)
    _, strengths, directions = torch.svd_lowrank(table, rank, niter=3)
    vectors = torch.zeros(vocabulary, dim)
    vectors[:, :rank] = directions * strengths.sqrt() * idf.sqrt()[:, None]
    return vectors * (scale / vectors[UNKNOWN + 1 :].std().clamp_min(1e-12))
