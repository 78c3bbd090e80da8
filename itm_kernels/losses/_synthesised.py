"""Cosines of a loss's rows with what is synthesised from the other side."""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels._options import Clustering
from itm_kernels.losses._contrast import Rows
from itm_kernels.ops.rbf_synthesis import Options, SynthesisLogits
from itm_kernels.ops.unit_synthesis import takes_raw
from itm_kernels.synthesis import logits_of_rows, logits_of_unit_rows


def logits_of(
    images: Rows,
    texts: Rows,
    options: Options,
    clustering: Clustering,
    detach: bool,
    generator: torch.Generator | None,
    draw: bool,
) -> Callable[[Rows, Tensor, Rows, Tensor], SynthesisLogits]:
    """Return what forms the cosines of anchors with what is synthesised from the other side."""
    function, backend = images.function, images.backend
    plain = detach and clustering == "shared"
    if plain and takes_raw(images.raw, texts.raw, function, backend):

        def of_raw(a: Rows, a_ids: Tensor, m: Rows, m_ids: Tensor) -> SynthesisLogits:
            sides = a.raw, a_ids, m.raw, m_ids
            return logits_of_rows(*sides, options, generator, function, backend, draw)

        return of_raw

    def of_unit(a: Rows, a_ids: Tensor, m: Rows, m_ids: Tensor) -> SynthesisLogits:
        how = options, clustering, detach, generator, function, backend
        return logits_of_unit_rows(a.unit, a_ids, m.unit, m_ids, *how, draw=draw)

    return of_unit
