"""Differentiable fused operators; `backend="auto"` picks the backend of each call."""

from itm_kernels.ops import (  # noqa: F401  (importing a module defines its operators)
    _cross_entropy,
    _imc,
    _info_cmr,
    _info_nce,
    _log_sum_exp_from_scores,
    _max_of_hinges,
    _max_of_hinges_from_scores,
    _sample_negatives,
    _sigmoid,
    _sigmoid_from_scores,
    _sum_of_hinges,
    _sum_of_hinges_from_scores,
    _unit_rows,
    _unit_synthesis,
)
from itm_kernels.ops._cross_attention import cross_attention
from itm_kernels.ops._hardest_negatives import HardestNegatives, hardest_negatives
from itm_kernels.ops._intra_modal import intra_modal_sum
from itm_kernels.ops._kmeans import KMeans, kmeans
from itm_kernels.ops._late_interaction import late_interaction
from itm_kernels.ops._log_sum_exp import LogSumExp, log_sum_exp
from itm_kernels.ops._ranks import Ranks, ranks
from itm_kernels.ops._rbf_synthesis import (
    Synthesis,
    SynthesisLogits,
    rbf_synthesis,
    rbf_synthesis_logits,
)
from itm_kernels.ops._similarity import similarity

__all__ = [
    "HardestNegatives",
    "KMeans",
    "LogSumExp",
    "Ranks",
    "Synthesis",
    "SynthesisLogits",
    "cross_attention",
    "hardest_negatives",
    "intra_modal_sum",
    "kmeans",
    "late_interaction",
    "log_sum_exp",
    "ranks",
    "rbf_synthesis",
    "rbf_synthesis_logits",
    "similarity",
]
