"""Brute-force oracles in float64, written from the published formulas alone.

They share no code with the package: plain loops over i and j, one function per loss and operator,
slow and obvious. Arguments and results are numpy arrays and floats.
"""

from oracles.contrastive import (
    fusion_contrastive,
    info_cmr,
    info_nce,
    info_nce_from_scores,
    ito,
    log_sum_exp,
    multi_view_alignment,
    sigmoid,
    sigmoid_from_scores,
)
from oracles.fine_grained import cross_attention, late_interaction
from oracles.hinges import (
    hardest_negatives,
    max_of_hinges,
    max_of_hinges_from_scores,
    sum_of_hinges,
    sum_of_hinges_from_scores,
)
from oracles.intra_modal import imc, intra_modal, intra_modal_sum
from oracles.matching import itm, sampler_probabilities
from oracles.pairing import normalized, positives, reduced, score_matrix
from oracles.ranking import recall_report
from oracles.synthesis import (
    kmeans,
    kmeans_plus_plus,
    rbf_synthesis,
    rbf_synthesis_cosines,
)

__all__ = [
    "cross_attention",
    "fusion_contrastive",
    "hardest_negatives",
    "imc",
    "info_cmr",
    "info_nce",
    "info_nce_from_scores",
    "intra_modal",
    "intra_modal_sum",
    "itm",
    "ito",
    "kmeans",
    "kmeans_plus_plus",
    "late_interaction",
    "log_sum_exp",
    "max_of_hinges",
    "max_of_hinges_from_scores",
    "multi_view_alignment",
    "normalized",
    "positives",
    "rbf_synthesis",
    "rbf_synthesis_cosines",
    "recall_report",
    "reduced",
    "sampler_probabilities",
    "score_matrix",
    "sigmoid",
    "sigmoid_from_scores",
    "sum_of_hinges",
    "sum_of_hinges_from_scores",
]
