"""The error rule: at most twice the error of plain PyTorch at the same precision."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOOR = 64  # errors up to this many roundings of an output's size are allowed


class ErrorRuleError(AssertionError):
    """An error that exceeds the rule, with the figures."""

    def __init__(self, message: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


class Errors(NamedTuple):
    """Errors and size of one output or gradient, as the largest element or as the norm."""

    eager: float
    ours: float
    size: float


def check_errors(
    exact: list[Tensor], eager: list[Tensor], found: list[Tensor], epsilon: float, norm: bool
) -> dict[str, Any]:
    """Check errors by the rule; return the largest as a multiple of the allowed error."""
    return judged(errors_of(exact, eager, found, norm), epsilon)


def errors_of(
    exact: list[Tensor], eager: list[Tensor], found: list[Tensor], norm: bool
) -> list[Errors]:
    """Return the errors of every output and gradient."""
    errors = []
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        finite = wanted.nan_to_num(0, 0, 0)
        size = finite.norm().item() if norm else max(1.0, finite.abs().max().item())
        errors.append(Errors(distance(theirs, wanted, norm), distance(ours, wanted, norm), size))
    return errors


def judged(errors: list[Errors], epsilon: float) -> dict[str, Any]:
    """Return the largest error as a multiple of the allowed one; raise if it exceeds 1."""
    ratios, figures = [0.0], []
    for eager, ours, size in errors:
        allowed = 2 * eager + FLOOR * epsilon * size
        ratios.append(ours / allowed if allowed else ours)
        figures.append({"eager": eager / (size or 1), "ours": ours / (size or 1)})
    beyond = [ratio for ratio in ratios if not ratio <= 1]  # true for NaN, too
    if beyond:
        raise ErrorRuleError(f"{beyond[0]:.3g} times the allowed error", {"errors": figures})
    return {"worst": max(ratios), "errors": figures}


def excused(errors: list[Errors], jumps: list[float], epsilon: float) -> bool:
    """Return whether results jump at a kink and the errors do not exceed these jumps."""
    floors = [FLOOR * epsilon * size for _, _, size in errors]
    return any(jump > floor for jump, floor in zip(jumps, floors, strict=True)) and all(
        ours <= 2 * (eager + jump) + floor
        for (eager, ours, _), jump, floor in zip(errors, jumps, floors, strict=True)
    )


def largest(draws: list[list[Errors]]) -> list[Errors]:
    """Return the largest errors of several batches; NaN counts as the largest."""
    return [Errors(*torch.tensor(one).amax(0).tolist()) for one in zip(*draws, strict=True)]


def distance(found: Tensor, wanted: Tensor, norm: bool) -> float:
    """Return the error, which is 0 for equal infinities."""
    difference = torch.where(found == wanted, 0, found - wanted)
    return (difference.norm() if norm else difference.abs().max()).item()
