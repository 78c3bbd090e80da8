"""The time a loss takes, forward and backward, against its plain PyTorch form."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from itm_kernels import backends
from models import Widths
from objectives import Objective, build_objective

# The operators each loss is made of: "auto" chooses a backend for each of them.
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


@dataclass(frozen=True)
class LossTime:
    """Medians of alternating measurements of one loss with two backends."""

    auto_ms: float
    reference_ms: float
    measurements: int
    chosen: dict[str, str]  # operator -> the backend that "auto" picks on this device

    def __str__(self) -> str:
        """Say what was measured, in one line, and what "auto" stood for."""
        if set(self.chosen.values()) == {"reference"}:
            meaning = "auto = reference here: the same code twice, any difference is noise"
        else:
            meaning = ", ".join(f"{name}: {backend}" for name, backend in self.chosen.items())
        return (
            f"loss, forward + backward: {self.auto_ms:.2f} ms, plain PyTorch "
            f"{self.reference_ms:.2f} ms, ratio {self.reference_ms / self.auto_ms:.2f} "
            f"(medians of {self.measurements}; {meaning})"
        )

    def as_json(self) -> dict[str, object]:
        """Return the fields for a machine to read."""
        return asdict(self)


def time_loss(
    name: str,
    objective: Objective,
    widths: Widths,
    batches: Sequence[tuple[tuple[Tensor, ...], Tensor]],
    *,
    rounds: int = 10,
) -> LossTime:
    """Time a loss with ``backend="auto"`` and ``backend="reference"`` in turns.

    Args:
        name: the ``--loss`` name.
        objective: the trained objective; its heads' weights are used by both sides.
        widths: sizes of what the encoders return.
        batches: encoded real batches with their ids.
        rounds: measurements of every batch on each side, after one unmeasured round.

    Returns:
        Median milliseconds of both sides.
    """
    sides = {}
    for backend in ("auto", "reference"):
        sides[backend] = build_objective(name, widths, backend=backend)
        sides[backend].load_state_dict(objective.state_dict())
    seconds: dict[str, list[float]] = {backend: [] for backend in sides}
    for measured in range(rounds + 1):
        for encoded, ids in batches:
            for backend, side in sides.items():
                elapsed = _forward_and_backward(side, encoded, ids)
                if measured:
                    seconds[backend].append(elapsed)
    embeddings, ids = batches[0][0][0], batches[0][1]
    rows = embeddings.shape[-2]
    chosen = {
        operator: backends.choose(operator, ids.device.type, (rows, rows))
        for operator in _OPERATORS[name]
    }
    return LossTime(
        auto_ms=1000 * median(seconds["auto"]),
        reference_ms=1000 * median(seconds["reference"]),
        measurements=len(seconds["auto"]),
        chosen=chosen,
    )


def _forward_and_backward(objective: Objective, encoded: tuple[Tensor, ...], ids: Tensor) -> float:
    leaves = tuple(part.detach().requires_grad_() for part in encoded)
    # Equal draws on both sides: the losses with noise or sampling do the same work.
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    objective.loss(leaves, ids, generator).backward()
    return time.perf_counter() - start
