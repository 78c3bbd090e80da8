"""Options of the intra-modal constraint, and the warning of an empty band."""

from typing import get_args

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Metric, Mode, Reduction, Thresholds, number, word
from itm_kernels._warnings import warn

BAND = {
    "metric": word(Metric),
    "lower": number(),
    "upper": number(),
    "weight": number(),
    "mode": word(Mode),
    "thresholds": word(Thresholds),
}


def check_constraint(
    metric: object,
    lower: object,
    upper: object,
    weight: object,
    mode: object,
    thresholds: object,
) -> None:
    """Check the options of a constraint."""
    _checks.option("metric", metric, get_args(Metric))
    _checks.option("mode", mode, get_args(Mode))
    _checks.option("thresholds", thresholds, get_args(Thresholds))
    _checks.number("weight", weight)
    if mode == "official":
        # The bounds of distances are ranks, as fractions of the batch.
        least = 0 if metric != "cosine" else float("-inf")
        _checks.number("lower", lower, least=least)
        _checks.number("upper", upper, least=least)
    else:
        _checks.number("lower", lower)
        _checks.number("upper", upper, above=float(lower))  # type: ignore[arg-type]


_warned: set[str] = set()  # functions and arguments whose empty band has been warned of


def warn_of_empty_band(
    function: str, name: str, values: Tensor, weight: float, **options: object
) -> None:
    """Warn once per process that a constraint is 0 because its band is empty.

    Values are only read where that needs no device synchronisation and breaks no graph.
    """
    key = f"{function}: {name}"
    if not _checks.can_read(values) or torch._C._are_functorch_transforms_active():
        return
    if key in _warned or weight == 0 or len(values) < 2 or values.any():
        return
    _warned.add(key)
    shown = ", ".join(f"{option}={value!r}" for option, value in options.items())
    warn(
        f"{function}: the band of the constraint selects no pair of {name} in this batch "
        f"({shown}), so it is 0 and has no gradient. This may pass early in training; if not, "
        "choose other bounds, with the shares that itm_kernels.diagnostics returns. This warning "
        "appears once",
        EmptyBandWarning,
    )


class EmptyBandWarning(UserWarning):
    """An intra-modal constraint is 0 because no pair of a batch lies in its band."""


def default_reduction(mode: Mode) -> Reduction:
    """Return the reduction over rows that a mode's source uses."""
    return "sum" if mode == "paper" else "mean"
