"""The error rule: at most twice the error of plain PyTorch at the same precision."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOOR = 64  # roundings of an output's size that are no error


class ErrorRuleError(AssertionError):
    """An error beyond the rule, with the figures."""

    def __init__(self, message: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


class Errors(NamedTuple):
    """The errors of one output or gradient, largest or by their norm, and its size likewise."""

    eager: float
    ours: float
    size: float


def hold(
    exact: list[Tensor], eager: list[Tensor], found: list[Tensor], epsilon: float, norm: bool
) -> dict[str, Any]:
    """Compare errors by the rule; return the worst as a multiple of what is allowed."""
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
    """Return the largest error as a multiple of what is allowed, and raise beyond it."""
    ratios, figures = [0.0], []
    for eager, ours, size in errors:
        allowed = 2 * eager + FLOOR * epsilon * size
        ratios.append(ours / allowed if allowed else ours)
        figures.append({"eager": eager / (size or 1), "ours": ours / (size or 1)})
    beyond = [ratio for ratio in ratios if not ratio <= 1]  # NaN is beyond, too
    if beyond:
        raise ErrorRuleError(
            f"{beyond[0]:.3g} times the error that is allowed", {"errors": figures}
        )
    return {"worst": max(ratios), "errors": figures}


def excused(errors: list[Errors], jumps: list[float], epsilon: float) -> bool:
    """Tell whether results jump at a kink, and errors are no larger than these jumps."""
    floors = [FLOOR * epsilon * size for _, _, size in errors]
    return any(jump > floor for jump, floor in zip(jumps, floors, strict=True)) and all(
        ours <= 2 * (eager + jump) + floor
        for (eager, ours, _), jump, floor in zip(errors, jumps, floors, strict=True)
    )


def largest(draws: list[list[Errors]]) -> list[Errors]:
    """Return the largest errors of several batches; NaN is larger than any."""
    return [Errors(*torch.tensor(one).amax(0).tolist()) for one in zip(*draws, strict=True)]


def distance(found: Tensor, wanted: Tensor, norm: bool) -> float:
    """Return the error, 0 where both are the same infinity."""
    difference = torch.where(found == wanted, 0, found - wanted)
    return (difference.norm() if norm else difference.abs().max()).item()
