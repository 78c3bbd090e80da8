"""Multiple alignment of ITO over the ranks of a process group."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels._policies import goes_round
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import gather_rows
from itm_kernels.distributed._side import Side
from itm_kernels.losses._contrast import Embeddings, LogSums, cross_entropy
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._views import check_views
from itm_kernels.losses.over_ranks._batch import reduce_over_ranks
from itm_kernels.losses.over_ranks._log_sums import (
    log_sums_around,
    log_sums_of_columns,
    with_all_columns,
)
from itm_kernels.ops._log_sum_exp import RelativeSums, as_scalar


def alignment_over_ranks(
    images: Tensor,  # [V, n, D]
    texts: Tensor,  # [U, n, D]
    scales: tuple[Any, Any, Any],  # logit_scale, temperature, max_scale
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `multi_view_alignment_loss` of the global batch."""
    with agreement:
        images, texts = check_views(0, images=images, texts=texts)
        check_options("mean", backend)
        scale = checked_scale(images, *scales)
        rows = {"images": images, "texts": texts}
        agreement.describe(
            "multi_view_alignment_loss", rows, logit_scale=scale, max_scale=scales[2]
        )
    images, texts, scale = agreement.entering(images, texts, as_scalar(scale, images))
    return mean_alignment(images, texts, scale, backend, agreement, "images")


def mean_alignment(
    images: Tensor,  # [V, n, D]
    texts: Tensor,  # [U, n, D]
    scale: Tensor,  # []
    backend: str,
    agreement: Agreement,
    name: str,  # of the side of both
) -> Tensor:  # []
    """Return the mean over all pairs of views and all samples of the global batch."""
    side = agreement.sides[name]
    v = ViewsOfAll(images, side, agreement.exchange, backend)
    c = Embeddings(texts, backend).unbind()
    losses = []
    for index in range(images.shape[0]):
        for text in c:
            found = v.log_sums(index, text, scale)
            from_image = LogSums(found.row[side.own], found.row_highest[side.own])
            from_text = LogSums(found.column, found.column_highest)
            losses.append(cross_entropy(found.positive, [from_image], [from_text], 0.5, backend))
    return reduce_over_ranks(torch.stack(losses), "mean", side, len(losses) * side.total)


class ViewsOfAll:
    """The views of the samples of all ranks: gathered, or sent around a ring when they are used."""

    def __init__(self, views: Tensor, side: Side, exchange: str, backend: str) -> None:
        self.side = side
        self.own = side.indices(views.device)
        self.everyone = torch.arange(side.total, device=views.device)
        self.ring = goes_round(exchange, views.shape[0] * side.total, views[0])
        if not self.ring:
            gathered = gather_rows(views.transpose(0, 1), side)
            views = gathered.transpose(0, 1).contiguous()
        self.views = Embeddings(views, backend).unbind()

    def log_sums(self, index: int, y: Embeddings, scale: Tensor) -> RelativeSums:
        """Return the sums of a view `[N]` and of this rank's rows y `[n]`, without own pairs."""
        return with_all_columns(self.log_sums_of_columns(index, y, scale), self.side)

    def log_sums_of_columns(self, index: int, y: Embeddings, scale: Tensor) -> RelativeSums:
        """Return the same, but the sums of the view are those over this rank's rows y only."""
        ids = self.everyone, self.own, self.own
        if self.ring:
            return log_sums_around(self.views[index], y, scale, *ids, self.side)
        return log_sums_of_columns(self.views[index], y, scale, *ids)
