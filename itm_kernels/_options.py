"""The words that options take, and objects whose options are checked whenever they are set."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UNNAMED, UnnamedTypeError, named

Backend = Literal["auto", "reference", "native", "triton"]
Reduction = Literal["none", "sum", "mean"]
Unmatched = Literal["error", "negative"]
Mining = Literal["hardest", "semihard"]
Metric = Literal["cosine", "l1", "l2", "sqeuclidean"]
Comparison = Literal["dot", "cosine", "l1", "l2", "sqeuclidean"]
Mode = Literal["official", "paper", "repel"]
Thresholds = Literal["row0", "per_row"]
Weights = Literal["kam", "attention"]
Clustering = Literal["shared", "per_anchor"]
Strategy = Literal["multinomial", "hardest", "uniform"]

# A check takes the name and the value of an option, and returns the value to store.
Check = Callable[[str, Any], Any]


def word(words: Any, *, optional: bool = False) -> Check:
    """Return the check of an option that is one of a Literal's words, or None."""

    def check(name: str, value: Any) -> Any:
        if not (optional and value is None):
            _checks.option(name, value, get_args(words))
        return value

    return check


def number(*, optional: bool = False, **bounds: float) -> Check:
    """Return the check of an option that is a number within bounds, or None."""

    def check(name: str, value: Any) -> Any:
        if optional and value is None:
            return value
        _checks.number(name, value, **bounds)
        return value if type(value) in (int, float) else float(value)  # numpy's: not for graphs

    return check


def number_or_tensor(*, above: float) -> Check:
    """Return the check of an option that is a number, or a tensor whose value is not read."""
    of_number = number(above=above)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return of_number(name, value)
        _checks.scalar(name, value)
        return value

    return check


def integer(least: int) -> Check:
    """Return the check of an option that is an integer, at least so large."""

    def check(name: str, value: Any) -> Any:
        _checks.integer(name, value, least)
        return operator.index(value)

    return check


def flag(name: str, value: Any) -> bool:
    """Check an option that is True or False."""
    if not isinstance(value, bool):
        raise UnnamedTypeError(f"{name} must be True or False, got {_checks.describe(value)}")
    return value


class Checked:
    """An object whose options are attributes that cannot be set to what they must not be.

    Options that depend on each other are checked alone when they are set, together when used.
    """

    checks: ClassVar[Mapping[str, Check]] = {}
    fixed: ClassVar[tuple[str, ...]] = ()  # what construction decides for good

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; check it first if it is an option."""
        owner = type(self).__name__
        if name in self.fixed and name in self.__dict__:
            raise AttributeError(
                f"{owner}: {name} is fixed at construction; "
                f"build {owner}({name}={_checks.shown(value)})"
            )
        if name in self.checks:
            try:
                value = self.checks[name](name, value)
            except UNNAMED as error:
                raise named(owner, error) from None
        super().__setattr__(name, value)
