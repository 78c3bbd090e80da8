"""The fused operators, differentiable, each behind `backend="auto"`."""

from itm_kernels.ops import cross_entropy as _cross_entropy  # noqa: F401  (defines its operator)
from itm_kernels.ops import imc as _imc  # noqa: F401
from itm_kernels.ops import info_cmr as _info_cmr  # noqa: F401
from itm_kernels.ops import info_nce as _info_nce  # noqa: F401
from itm_kernels.ops import max_of_hinges as _max_of_hinges  # noqa: F401
from itm_kernels.ops import sample_negatives as _sample_negatives  # noqa: F401
from itm_kernels.ops import sigmoid as _sigmoid  # noqa: F401
from itm_kernels.ops import sum_of_hinges as _sum_of_hinges  # noqa: F401
from itm_kernels.ops import unit_rows as _unit_rows  # noqa: F401
from itm_kernels.ops import unit_synthesis as _unit_synthesis  # noqa: F401
from itm_kernels.ops.hardest_negatives import HardestNegatives, hardest_negatives
from itm_kernels.ops.intra_modal import intra_modal_sum
from itm_kernels.ops.kmeans import KMeans, kmeans
from itm_kernels.ops.log_sum_exp import LogSumExp, log_sum_exp
from itm_kernels.ops.ranks import ranks
from itm_kernels.ops.rbf_synthesis import (
    Synthesis,
    SynthesisLogits,
    rbf_synthesis,
    rbf_synthesis_logits,
)
from itm_kernels.ops.similarity import similarity

__all__ = [
    "HardestNegatives",
    "KMeans",
    "LogSumExp",
    "Synthesis",
    "SynthesisLogits",
    "hardest_negatives",
    "intra_modal_sum",
    "kmeans",
    "log_sum_exp",
    "ranks",
    "rbf_synthesis",
    "rbf_synthesis_logits",
    "similarity",
]
