"""The options of a run and the results that its files contain."""

from dataclasses import dataclass
from typing import Any

from itm_kernels.retrieval import RetrievalReport


@dataclass(frozen=True)
class Options:
    """Everything that determines the result of a run, besides the contents of the data."""

    data: str  # for display: a run is bound to the contents of the data, not to its path
    loss: str
    text_encoder: str
    tokenizer: str
    epochs: int
    batch_size: int
    dim: int
    learning_rate: float
    warm_up: int
    seed: int
    chunk_size: int | None = None  # changes the statistics of batch normalisation
    similarity: str | None = None  # of regions and words; None: embeddings without regions


def report_as_json(report: RetrievalReport) -> dict[str, Any]:
    """Return the results of a report as a dictionary for JSON; recalls in percent."""
    return {
        "i2t": {str(k): recall for k, recall in report.i2t.items()},
        "t2i": {str(k): recall for k, recall in report.t2i.items()},
        "i2t_median_rank": report.i2t_median_rank,
        "t2i_median_rank": report.t2i_median_rank,
        "rsum": report.rsum,
    }
