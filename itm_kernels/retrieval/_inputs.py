"""Checks of the inputs of retrieval metrics, and normalisation for the cosine metric."""

import torch
from torch import Tensor

from itm_kernels._public import UnnamedValueError
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
