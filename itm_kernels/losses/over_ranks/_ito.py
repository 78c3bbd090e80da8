"""ITO loss over the ranks of a process group."""

from torch import Tensor

from itm_kernels import _checks
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._views import check_fused, check_views
from itm_kernels.losses.over_ranks._fusion_contrastive import mean_fusion
from itm_kernels.losses.over_ranks._multi_view_alignment import mean_alignment
from itm_kernels.ops._log_sum_exp import as_scalar


def ito_over_ranks(
    images: Tensor,  # [V, n, D]
    texts: Tensor,  # [U, n, D]
    fused: Tensor,  # [V, n, D]
    logit_scale: float | Tensor,
    fusion_weight: float,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `ITOLoss` of the global batch."""
    with agreement:
        images, texts = check_views(0, images=images, texts=texts)
        check_fused(fused, 0)
        _checks.number("fusion_weight", fusion_weight, least=0)
        check_options("mean", backend)
        scale = checked_scale(images, logit_scale, None, None)
        agreement.describe(
            "ITOLoss",
            {"images": images, "texts": texts, "fused": fused},
            logit_scale=scale,
            fusion_weight=float(fusion_weight),
        )
    images, texts, fused, scale = agreement.entering(images, texts, fused, scale)
    of_images, of_fused = (as_scalar(scale, views) for views in (images, fused))
    align = mean_alignment(images, texts, of_images, backend, agreement, "images")
    fusion = mean_fusion(fused, of_fused, backend, agreement)
    return align + fusion_weight * fusion
