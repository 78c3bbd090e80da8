"""Bytes that a rank sends for a loss over ranks, forward and backward.

A gather of b bytes per rank counts (W - 1) b, as does a reduce-scatter of W b; an all-reduce counts
2 (W - 1) / W of its bytes: what algorithms of least traffic send. A message from rank to rank
counts its bytes. Embeddings travel in their dtype, their gradients and statistics in fp32 or fp64.
"""

from typing import NamedTuple

from itm_kernels.distributed._agreement import MESSAGE_BYTES

_ID_BYTES = 8


class Sizes(NamedTuple):
    """Sizes of a global batch."""

    W: int  # ranks
    n: int  # images of the rank with the most
    m: int  # texts of the rank with the most
    N: int  # images of all ranks
    D: int  # columns
    size: int  # bytes of an element of the embeddings
    ids: bool = False  # whether ids are passed
    reduced: bool = True  # "sum" or "mean"

    @property
    def wide(self) -> int:
        """Bytes of an element of gradients and statistics."""
        return max(self.size, 4)


class Messages(NamedTuple):
    """Messages of a loss besides the agreement, ids and its value."""

    texts: bool  # whether texts travel like images
    statistics: int  # all-reduces of one number per image in the forward pass
    gradients: int  # and in the backward pass
    images: int = 1  # how often images travel: once for each view
    warning: int = 0  # bytes that say on a CPU whether a band is empty


# By the names of the functions; semi-hard mining of max_of_hinges_loss travels as the sum.
MESSAGES = {
    "sum_of_hinges_loss": Messages(True, 0, 0),
    "max_of_hinges_loss": Messages(False, 2, 1),
    "imc_loss": Messages(True, 2, 1, warning=2),
    "intra_modal_constraint": Messages(False, 0, 0, warning=1),  # of one side, without texts
    "info_nce_loss": Messages(False, 2, 1),
    "sigmoid_loss": Messages(False, 0, 0),
}


def alignment(images: int, texts: int) -> Messages:
    """Return what `multi_view_alignment_loss` sends for numbers of views."""
    return Messages(False, 2 * images * texts, images * texts, images)


def fusion(views: int) -> Messages:
    """Return what `fusion_contrastive_loss` sends for a number of views."""
    pairs = views * (views - 1) // 2
    return Messages(False, 2 * pairs, pairs, views)


class Bytes(NamedTuple):
    """Bytes that one rank sends."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Bytes of a step."""
        return self.forward + self.backward


def gathered(messages: Messages, sizes: Sizes) -> Bytes:
    """Return the bytes with exchange="gather"."""
    others, rows = sizes.W - 1, sizes.n * messages.images + sizes.m * messages.texts
    statistic = 2 * others / sizes.W * sizes.N * sizes.wide
    return Bytes(
        _always(messages, sizes)
        + others * rows * sizes.D * sizes.size
        + messages.statistics * statistic,
        others * rows * sizes.D * sizes.wide + messages.gradients * statistic,
    )


def circulated(messages: Messages, sizes: Sizes) -> Bytes:
    """Return the bytes with exchange="ring", for losses whose texts stay on their rank.

    Hinges fetch the rows of positives and hardest negatives; how many of them other ranks hold
    depends on the data.
    """
    others, block = sizes.W - 1, sizes.n * sizes.D
    statistic = 2 * others / sizes.W * sizes.N * sizes.wide
    return Bytes(
        _always(messages, sizes) + others * block * sizes.size + messages.statistics * statistic,
        others * block * sizes.size + sizes.W * block * sizes.wide + messages.gradients * statistic,
    )


def _always(messages: Messages, sizes: Sizes) -> float:
    others = sizes.W - 1
    ids = others * _ID_BYTES * (sizes.n + sizes.m) if sizes.ids else 0
    return others * (MESSAGE_BYTES + messages.warning) + ids + others * sizes.wide * sizes.reduced
