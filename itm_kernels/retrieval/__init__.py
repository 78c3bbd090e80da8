"""Retrieval metrics in both directions, without an N x M score matrix in memory."""

from itm_kernels.retrieval.average_precision import mean_average_precision
from itm_kernels.retrieval.evaluation import evaluate
from itm_kernels.retrieval.from_scores import evaluate_scores
from itm_kernels.retrieval.report import RetrievalReport

__all__ = ["RetrievalReport", "evaluate", "evaluate_scores", "mean_average_precision"]
