"""Time of a loss, forward and backward, compared with its plain PyTorch reference."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from itm_kernels import backends
from models import Widths
from objectives import Objective, build_objective
from similarities import OPERATORS

# The operators of each loss. "auto" chooses a backend for each operator.
_OPERATORS = {
    "sum_of_hinges": ("sum_of_hinges",),
    "max_of_hinges": ("max_of_hinges",),
    "imc": ("max_of_hinges", "intra_modal"),
    "info_cmr": (
        *("unit_rows", "kmeans_plus_plus", "kmeans", "rbf_synthesis_logits", "log_sum_exp"),
        "cross_entropy",
    ),
    "info_nce": ("unit_rows", "log_sum_exp", "cross_entropy"),
    "sigmoid": ("unit_rows", "sigmoid"),
    "itm": ("unit_rows", "log_sum_exp", "cross_entropy", "sample_negatives"),
    "ito": ("unit_rows", "log_sum_exp", "cross_entropy"),
}
# Those of the losses that take scores.
_OPERATORS_OF_SCORES = {
    "sum_of_hinges": ("sum_of_hinges_from_scores",),
    "max_of_hinges": ("max_of_hinges_from_scores",),
    "imc": ("max_of_hinges_from_scores", "intra_modal"),
    "info_cmr": (*_OPERATORS["info_cmr"], "log_sum_exp_from_scores"),
    "info_nce": ("log_sum_exp_from_scores", "cross_entropy"),
    "sigmoid": ("sigmoid_from_scores",),
}


@dataclass(frozen=True)
class LossTime:
    """Medians of alternating measurements of one loss with two backends."""

    auto_ms: float
    reference_ms: float
    measurements: int
    chosen: dict[str, str]  # operator -> the backend that "auto" picks on this device

    def __str__(self) -> str:
        """Return one line with the times and the backends that "auto" chose."""
        if set(self.chosen.values()) == {"reference"}:
            meaning = "auto = reference here: any difference is noise"
        else:
            meaning = ", ".join(f"{name}: {backend}" for name, backend in self.chosen.items())
        return (
            f"loss, forward + backward: {self.auto_ms:.2f} ms, plain PyTorch "
            f"{self.reference_ms:.2f} ms, ratio {self.reference_ms / self.auto_ms:.2f} "
            f"(medians of {self.measurements}; {meaning})"
        )

    def as_json(self) -> dict[str, object]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


def time_loss(
    name: str,
    objective: Objective,
    widths: Widths,
    batches: Sequence[tuple[tuple[Tensor, ...], Tensor]],
    *,
    similarity: str | None = None,
    rounds: int = 10,
) -> LossTime:
    """Time a loss with ``backend="auto"`` and ``backend="reference"`` alternately.

    Args:
        name: the ``--loss`` name.
        objective: the trained objective; both backends use the weights of its heads.
        widths: output sizes of the encoders.
        batches: encoded real batches with their ids.
        similarity: the ``--similarity`` name; scores of regions and words are timed with the loss.
        rounds: measurements of every batch with each backend, after one unmeasured round.

    Returns:
        Median milliseconds of both backends.
    """
    sides = {}
    for backend in ("auto", "reference"):
        sides[backend] = build_objective(name, widths, backend=backend, similarity=similarity)
        sides[backend].load_state_dict(objective.state_dict())
    seconds: dict[str, list[float]] = {backend: [] for backend in sides}
    for measured in range(rounds + 1):
        for encoded, ids in batches:
            for backend, side in sides.items():
                elapsed = _forward_and_backward(side, encoded, ids)
                if measured:
                    seconds[backend].append(elapsed)
    ids = batches[0][1]
    operators = _OPERATORS[name]
    if similarity in OPERATORS:
        operators = (OPERATORS[similarity], *_OPERATORS_OF_SCORES[name])
    chosen = {
        operator: backends.choose(operator, ids.device.type, (len(ids), len(ids)))
        for operator in operators
    }
    return LossTime(
        auto_ms=1000 * median(seconds["auto"]),
        reference_ms=1000 * median(seconds["reference"]),
        measurements=len(seconds["auto"]),
        chosen=chosen,
    )


def _forward_and_backward(objective: Objective, encoded: tuple[Tensor, ...], ids: Tensor) -> float:
    leaves = tuple(part.detach().requires_grad_(part.is_floating_point()) for part in encoded)
    # Both backends make the same draws, so that losses with noise or sampling do the same work.
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    objective.loss(leaves, ids, generator).backward()
    return time.perf_counter() - start
