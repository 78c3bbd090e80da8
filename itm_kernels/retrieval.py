"""Recall@K, median rank and R-sum in both directions, without an N x M matrix in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from itm_kernels import _checks, ops

_FUNCTION = "evaluate"


@dataclass(frozen=True)
class RetrievalReport:
    """What `evaluate` found; ``str()`` prints it as a table."""

    i2t: dict[int, float]  # k -> percent of images with one of their texts among the first k
    t2i: dict[int, float]  # k -> percent of texts with one of their images among the first k
    i2t_median_rank: float  # 1 is best
    t2i_median_rank: float
    rsum: float  # sum of all recalls of both directions

    def __str__(self) -> str:
        """Return one line per direction under a heading, and R-sum."""
        heading = "".join(f"{f'R@{k}':>8}" for k in self.i2t)
        directions = (
            ("image to text", self.i2t, self.i2t_median_rank),
            ("text to image", self.t2i, self.t2i_median_rank),
        )
        rows = [
            f"{name:<14}{''.join(f'{recall:>8.1f}' for recall in recalls.values())}{median:>13.1f}"
            for name, recalls, median in directions
        ]
        return "\n".join((f"{'':<14}{heading}{'median rank':>13}", *rows, f"R-sum {self.rsum:.1f}"))


@torch.no_grad()
def evaluate(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    *,
    image_ids: Tensor | None = None,  # [N]
    text_ids: Tensor | None = None,  # [M]
    ks: Sequence[int] = (1, 5, 10),
) -> RetrievalReport:
    r"""Measure how well images retrieve their texts and texts their images.

    .. math:: r_i = 1 + |\{j : s_{ij} > \max_{p \in P(i)} s_{ip}\}|, \quad
        R@k = 100 \cdot |\{i : r_i \le k\}| / N

    Scores are dot products of the embeddings as given: pass rows of unit length for cosines.
    Ties count in the query's favour. Float16 and bfloat16 are scored in float32.

    Args:
        image: ``[N, D]``, one row per image.
        text: ``[M, D]``, one row per text.
        image_ids: ``[N]`` integers; given together with `text_ids`. Without ids, M is a multiple
            of N and text j belongs to image ``j // (M // N)``, the layout of VSE++.
        text_ids: ``[M]`` integers; a text belongs to every image with its id.
        ks: numbers of candidates looked at, each at least 1, without repetition.

    Returns:
        Recalls in percent and median ranks of both directions, and the sum of the recalls.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit, `ks` is empty, repeats a number or has one below 1, an
            embedding is not finite, or an id appears on one side only.

    Source: Faghri et al., VSE++, 2018, section 4; a rank is its query's best over all positives.

    Example:
        >>> import torch
        >>> from itm_kernels.retrieval import evaluate
        >>> image = torch.eye(3)
        >>> text = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 1.0]])
        >>> print(evaluate(image, text, ks=(1, 2)))
                           R@1     R@2  median rank
        image to text    100.0   100.0          1.0
        text to image     66.7   100.0          1.0
        R-sum 366.7
    """
    image, text = _checks.embeddings(_FUNCTION, image=image, text=text)
    _check_ks(ks)
    for name, embeddings in (("image", image), ("text", text)):
        bad = ~embeddings.isfinite().all(1)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"{_FUNCTION}: {name}[{row}] is not finite ({int(bad.sum())} of {len(embeddings)} "
                "rows are not); a rank among such scores means nothing"
            )
    image_ids, text_ids = _ids(image, text, image_ids, text_ids)
    image_ranks = ops.ranks(image, text, image_ids, text_ids)
    text_ranks = ops.ranks(text, image, text_ids, image_ids)
    i2t = {k: _recall(image_ranks, k) for k in ks}
    t2i = {k: _recall(text_ranks, k) for k in ks}
    return RetrievalReport(
        i2t=i2t,
        t2i=t2i,
        i2t_median_rank=_median(image_ranks),
        t2i_median_rank=_median(text_ranks),
        rsum=sum(i2t.values()) + sum(t2i.values()),
    )


def _check_ks(ks: Sequence[int]) -> None:
    if not isinstance(ks, Sequence) or isinstance(ks, str):
        raise TypeError(
            f"{_FUNCTION}: ks must be a sequence of integers, got {_checks.describe(ks)}"
        )
    for k in ks:
        _checks.integer(_FUNCTION, "every k in ks", k, 1)
    if not ks or len(set(ks)) != len(ks):
        raise ValueError(f"{_FUNCTION}: ks must hold at least one number, each once, got {ks}")


def _ids(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return checked ids on the embeddings' device; without ids, those of the VSE++ layout."""
    names, sides = ("image_ids", "text_ids"), (image, text)
    image_ids, text_ids = _checks.id_pair(_FUNCTION, names, (image_ids, text_ids), sides)
    if image_ids is None or text_ids is None:
        texts_per_image, surplus = divmod(len(text), len(image))
        if surplus or not texts_per_image:
            raise ValueError(
                f"{_FUNCTION}: text {list(text.shape)} is no multiple of image "
                f"{list(image.shape)} in rows; pass image_ids and text_ids"
            )
        image_ids = torch.arange(len(image), device=image.device)
        return image_ids, image_ids.repeat_interleave(texts_per_image)
    named = (("image_ids", image_ids), ("text_ids", text_ids))
    for (name, ids), (other_name, other) in (named, named[::-1]):
        alone = ids[~torch.isin(ids, other)].unique().tolist()
        if alone:
            shown = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
            raise ValueError(
                f"{_FUNCTION}: {len(alone)} of the ids in {name} do not appear in {other_name} "
                f"({shown}); every row needs a positive on the other side"
            )
    return image_ids, text_ids


def _recall(ranks: Tensor, k: int) -> float:
    """Return the percentage of ranks within the first k."""
    return 100.0 * int((ranks <= k).sum()) / len(ranks)


def _median(ranks: Tensor) -> float:
    """Return the middle rank, or the mean of the two middle ones."""
    ordered = ranks.sort().values
    return (int(ordered[(len(ranks) - 1) // 2]) + int(ordered[len(ranks) // 2])) / 2
