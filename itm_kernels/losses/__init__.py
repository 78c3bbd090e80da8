"""The losses as nn.Modules; `itm_kernels.functional` has them as functions."""

from itm_kernels.losses.fusion_contrastive import FusionContrastiveLoss
from itm_kernels.losses.imc import IMCLoss
from itm_kernels.losses.info_cmr import InfoCMRLoss
from itm_kernels.losses.info_nce import InfoNCELoss
from itm_kernels.losses.intra_modal import IntraModalConstraint
from itm_kernels.losses.itm import ITMLoss
from itm_kernels.losses.ito import ITOLoss
from itm_kernels.losses.max_of_hinges import MaxOfHingesLoss
from itm_kernels.losses.multi_view_alignment import MultiViewAlignmentLoss
from itm_kernels.losses.sigmoid import SigmoidLoss
from itm_kernels.losses.sum_of_hinges import SumOfHingesLoss

__all__ = [
    "FusionContrastiveLoss",
    "IMCLoss",
    "ITMLoss",
    "ITOLoss",
    "InfoCMRLoss",
    "InfoNCELoss",
    "IntraModalConstraint",
    "MaxOfHingesLoss",
    "MultiViewAlignmentLoss",
    "SigmoidLoss",
    "SumOfHingesLoss",
]
