"""Bytes that a rank sends for a loss over ranks, forward and backward.

A gather of b bytes per rank counts (W - 1) b, as does a reduce-scatter of W b; an all-reduce counts
2 (W - 1) / W of its bytes: what algorithms of least traffic send. A broadcast and a message from
rank to rank count their bytes. Embeddings travel in their dtype, their gradients and statistics in
fp32 or fp64.
"""

from typing import NamedTuple

from itm_kernels.distributed._agreement import MESSAGE_BYTES

_INDEX_BYTES = 8  # of an index, an id or a number of rows


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
    M: int | None = None  # texts of all ranks; None: as many as images

    @property
    def wide(self) -> int:
        """Bytes of an element of gradients and statistics."""
        return max(self.size, 4)

    @property
    def all_texts(self) -> int:
        """Texts of all ranks."""
        return self.N if self.M is None else self.M


class Messages(NamedTuple):
    """Messages of a loss besides the agreement, ids and its value, if rows are gathered."""

    texts: bool  # whether texts travel like images
    statistics: int  # all-reduces of one number per image in the forward pass
    gradients: int  # and in the backward pass
    images: int = 1  # how often images travel: once for each view
    warning: int = 0  # bytes that say on a CPU whether a band is empty
    rounds: int = 1  # how often images go round a ring, instead of being gathered


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
    pairs = images * texts
    return Messages(False, 2 * pairs, pairs, images, rounds=pairs)


def fusion(views: int) -> Messages:
    """Return what `fusion_contrastive_loss` sends for a number of views."""
    pairs = views * (views - 1) // 2
    return Messages(False, 2 * pairs, pairs, views, rounds=views + pairs)


class Bytes(NamedTuple):
    """Bytes that one rank sends."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Bytes of a step."""
        return self.forward + self.backward

    def __add__(self, other: "Bytes") -> "Bytes":  # type: ignore[override]
        """Return the sums, not a concatenation."""
        return Bytes(self.forward + other.forward, self.backward + other.backward)


class Fetched(NamedTuple):
    """Rows that travel because a rank asks for them by their index."""

    asked: int  # rows of other ranks that this rank asks for
    answered: int  # own rows that other ranks ask for
    times: int = 1  # number of fetches


def gathered(messages: Messages, sizes: Sizes) -> Bytes:
    """Return the bytes with exchange="gather"."""
    others, rows = sizes.W - 1, sizes.n * messages.images + sizes.m * messages.texts
    return _always(messages, sizes) + Bytes(
        others * rows * sizes.D * sizes.size + _statistics(messages.statistics, sizes),
        others * rows * sizes.D * sizes.wide + _statistics(messages.gradients, sizes),
    )


def circulated(messages: Messages, sizes: Sizes) -> Bytes:
    """Return the bytes with exchange="ring" of losses that only send images and statistics."""
    rounds = _rounds(messages.rounds, sizes)
    statistics = _statistics(messages.statistics, sizes), _statistics(messages.gradients, sizes)
    return _always(messages, sizes) + rounds + Bytes(*statistics)


def circulated_hinges(mining: str | None, sizes: Sizes, fetched: Fetched | None = None) -> Bytes:
    """Return the bytes of a hinge loss with exchange="ring".

    Args:
        mining: None for the sum over all negatives.
        sizes: of the batch.
        fetched: for the hardest negatives, the rows of positives and of hardest texts and images;
            otherwise, with ids, those of positives.
    """
    found = _always(Messages(False, 0, 0), sizes)
    if fetched is not None:
        found += rows_by_index(fetched, sizes)
    if mining == "hardest":
        # The maximum and its index per image, and whether it is NaN.
        mined = 2 * (sizes.W - 1) / sizes.W * sizes.N * (sizes.wide + _INDEX_BYTES + 4)
        return found + Bytes(_rounds(1, sizes).forward + mined, 0)
    # Positive scores of all pairs, and what the texts of every rank add to each.
    of_pairs = (sizes.W - 1) * sizes.m * sizes.wide
    found += _rounds(1, sizes)
    if mining is None:
        return found + Bytes(2 * of_pairs, 2 * of_pairs)
    texts = sizes._replace(N=sizes.all_texts)
    return found + Bytes(of_pairs + _statistics(2, texts), _statistics(1, texts))


def circulated_imc(sizes: Sizes, fetched: Fetched) -> Bytes:
    """Return the bytes of `imc_loss` with exchange="ring", for bounds other than ranks.

    Args:
        sizes: of the batch.
        fetched: as for hinges with the hardest negatives.
    """
    sides = _rounds(1, sizes) + _rounds(1, sizes._replace(n=sizes.m))
    warning = (sizes.W - 1) * MESSAGES["imc_loss"].warning
    return circulated_hinges("hardest", sizes, fetched) + sides + Bytes(warning, 0)


def info_cmr(
    sizes: Sizes, ring: bool, clusters: int, noise: bool, detach: bool, state: int
) -> Bytes:
    """Return the bytes of `info_cmr_loss`; with clusters, rows of both sides are gathered.

    Args:
        sizes: of the batch.
        ring: whether rows go round without clusters.
        clusters: synthetic negatives of a row, K.
        noise: whether noise is drawn.
        detach: whether no gradient reaches the members of clusters.
        state: bytes of the state of a random generator.
    """
    of_batch = MESSAGES["info_nce_loss"]
    found = circulated(of_batch, sizes) if ring and not clusters else gathered(of_batch, sizes)
    others = sizes.W - 1
    if clusters or noise:
        found += Bytes(state, 0)
    if clusters:
        texts = others * sizes.m * sizes.D
        found += Bytes(texts * sizes.size, 0 if detach else texts * sizes.wide)
    # Two addends per negative of an image, of which one has a gradient.
    logits = others * sizes.n * (clusters + noise) * sizes.wide
    return found + Bytes(2 * logits, logits)


def itm(sizes: Sizes, mined: bool) -> Bytes:
    """Return the bytes of `ITMLoss` with reduction="mean", without those of the caller's model."""
    others = sizes.W - 1
    rows = others * (sizes.n + sizes.m) * sizes.D * sizes.size if mined else 0
    number = 2 * others / sizes.W * _INDEX_BYTES  # of pairs
    return _always(Messages(False, 0, 0), sizes) + Bytes(rows + number, 0)


def fetch(fetched: Fetched, sizes: Sizes) -> Bytes:
    """Return the bytes of `fetch`: the agreement, whether an index is out of range, and rows."""
    checks = (sizes.W - 1) * MESSAGE_BYTES + 2 * (sizes.W - 1) / sizes.W * 4
    return rows_by_index(fetched, sizes) + Bytes(checks, 0)


def ito(images: int, texts: int, fused: int, ring: bool, sizes: Sizes) -> Bytes:
    """Return the bytes of `ITOLoss` for numbers of views: both terms, with one agreement."""
    of_term = circulated if ring else gathered
    both = of_term(alignment(images, texts), sizes) + of_term(fusion(fused), sizes)
    return both + Bytes(-(sizes.W - 1) * MESSAGE_BYTES, 0)


def rows_by_index(fetched: Fetched, sizes: Sizes) -> Bytes:
    """Return the bytes of the numbers of requests, the indices, the rows and their gradients."""
    numbers = fetched.times * (sizes.W - 1) * _INDEX_BYTES
    row = sizes.D * sizes.size
    forward = numbers + fetched.asked * _INDEX_BYTES + fetched.answered * row
    return Bytes(forward, fetched.asked * row)


def _rounds(number: int, sizes: Sizes) -> Bytes:
    """Return the bytes of images that go round, and in the backward pass once more."""
    block = number * sizes.n * sizes.D
    once = (sizes.W - 1) * block * sizes.size
    return Bytes(once, once + sizes.W * block * sizes.wide)


def _statistics(number: int, sizes: Sizes) -> float:
    """Return the bytes of all-reduces of one number per image."""
    return number * 2 * (sizes.W - 1) / sizes.W * sizes.N * sizes.wide


def _always(messages: Messages, sizes: Sizes) -> Bytes:
    """Return the bytes of the agreement, ids, a warning and the value."""
    others = sizes.W - 1
    ids = others * _INDEX_BYTES * (sizes.n + sizes.m) if sizes.ids else 0
    value = others * sizes.wide * sizes.reduced
    return Bytes(others * (MESSAGE_BYTES + messages.warning) + ids + value, 0)
