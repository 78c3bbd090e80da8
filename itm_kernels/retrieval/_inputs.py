"""Checks of the inputs of retrieval metrics, and normalisation for the cosine metric."""

from collections.abc import Sequence

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedTypeError, UnnamedValueError
from itm_kernels.reference._precision import wide

METRICS = ("dot", "cosine")
Rows = tuple[Tensor, Tensor, Tensor]  # rows to score, ids, keys of equal rows


def check_finite(**tensors: Tensor) -> None:
    """Raise ValueError for rows that are not finite."""
    for name, embeddings in tensors.items():
        bad = ~embeddings.isfinite().all(1)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise UnnamedValueError(
                f"{name}[{row}] is not finite ({int(bad.sum())} of {len(embeddings)} "
                "rows are not); ranks among such scores are meaningless"
            )


def check_partners(names: tuple[str, str], ids: Tensor, other: Tensor, remedy: str) -> None:
    """Raise ValueError for ids that are missing on the other side."""
    alone = ids[~torch.isin(ids, other)].unique()
    if len(alone):
        shown = ", ".join(map(str, alone[:5].tolist())) + (", ..." if len(alone) > 5 else "")
        raise UnnamedValueError(
            f"{len(alone)} of the ids in {names[0]} do not appear in {names[1]} ({shown}); {remedy}"
        )


def check_ks(ks: Sequence[int]) -> None:
    """Check the cutoffs k of R@k: integers of at least 1, each once."""
    if not isinstance(ks, Sequence) or isinstance(ks, str):
        raise UnnamedTypeError(f"ks must be a sequence of integers, got {_checks.describe(ks)}")
    for k in ks:
        _checks.integer("every k in ks", k, 1)
    if not ks or len(set(ks)) != len(ks):
        got = ks if len(ks) <= 10 else _checks.describe(ks)
        raise UnnamedValueError(f"ks must hold at least one number, each once, got {got}")


def check_folds(folds: int, images: int, name: str) -> None:
    """Raise ValueError for a number of folds that does not divide the images."""
    if images % folds:
        raise UnnamedValueError(
            f"folds={folds} does not divide the {images} {name}; "
            "leave rows out or choose another number of folds"
        )


def check_positives(image_ids: Tensor, text_ids: Tensor) -> None:
    """Raise ValueError for an image or text without a positive."""
    remedy = "every row needs a positive on the other side"
    check_partners(("image_ids", "text_ids"), image_ids, text_ids, remedy)
    check_partners(("text_ids", "image_ids"), text_ids, image_ids, remedy)


def ids_of_layout(images: int, texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ids of the layout of VSE++: text j belongs to image j // (texts // images)."""
    image_ids = torch.arange(images, device=device)
    return image_ids, image_ids.repeat_interleave(texts // images)


def for_metric(x: Tensor, metric: str) -> Tensor:
    """Return rows whose dot products are the scores of the metric."""
    if metric == "dot":
        return x
    # Divide by the largest element first: squares of finite numbers may overflow or underflow.
    x = wide(x)
    largest = x.abs().amax(1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.masked_fill(length == 0, 1)
