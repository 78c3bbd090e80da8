"""The losses as functions; `itm_kernels.losses` has them as Modules."""

from itm_kernels.losses.fusion_contrastive import fusion_contrastive_loss
from itm_kernels.losses.imc import imc_loss
from itm_kernels.losses.info_cmr import info_cmr_loss
from itm_kernels.losses.info_nce import info_nce_loss
from itm_kernels.losses.intra_modal import intra_modal_constraint
from itm_kernels.losses.itm import itm_loss
from itm_kernels.losses.max_of_hinges import max_of_hinges_loss
from itm_kernels.losses.multi_view_alignment import multi_view_alignment_loss
from itm_kernels.losses.sigmoid import sigmoid_loss
from itm_kernels.losses.sum_of_hinges import sum_of_hinges_loss

__all__ = [
    "fusion_contrastive_loss",
    "imc_loss",
    "info_cmr_loss",
    "info_nce_loss",
    "intra_modal_constraint",
    "itm_loss",
    "max_of_hinges_loss",
    "multi_view_alignment_loss",
    "sigmoid_loss",
    "sum_of_hinges_loss",
]
