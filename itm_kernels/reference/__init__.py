"""The formula of every operator in plain PyTorch, whose autograd is the gradient oracle.

Inputs are not checked. fp16 and bf16 are computed in fp32.
"""

from itm_kernels.reference._cross_attention import cross_attention
from itm_kernels.reference._cross_entropy import cross_entropy
from itm_kernels.reference._hardest_negatives import hardest_negatives
from itm_kernels.reference._intra_modal import intra_modal
from itm_kernels.reference._kmeans import kmeans, kmeans_plus_plus
from itm_kernels.reference._late_interaction import late_interaction
from itm_kernels.reference._log_sum_exp import log_sum_exp, log_sum_exp_from_scores
from itm_kernels.reference._max_of_hinges import max_of_hinges, max_of_hinges_from_scores
from itm_kernels.reference._ranks import ranks
from itm_kernels.reference._rbf_synthesis import rbf_synthesis, rbf_synthesis_logits
from itm_kernels.reference._sample_negatives import (
    sample_negatives,
    sample_negatives_from_scores,
)
from itm_kernels.reference._sigmoid import sigmoid, sigmoid_from_scores
from itm_kernels.reference._similarity import similarity
from itm_kernels.reference._sum_of_hinges import sum_of_hinges, sum_of_hinges_from_scores
from itm_kernels.reference._unit_rows import unit_rows

__all__ = [
    "cross_attention",
    "cross_entropy",
    "hardest_negatives",
    "intra_modal",
    "kmeans",
    "kmeans_plus_plus",
    "late_interaction",
    "log_sum_exp",
    "log_sum_exp_from_scores",
    "max_of_hinges",
    "max_of_hinges_from_scores",
    "ranks",
    "rbf_synthesis",
    "rbf_synthesis_logits",
    "sample_negatives",
    "sample_negatives_from_scores",
    "sigmoid",
    "sigmoid_from_scores",
    "similarity",
    "sum_of_hinges",
    "sum_of_hinges_from_scores",
    "unit_rows",
]
