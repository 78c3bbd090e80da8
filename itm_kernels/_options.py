"""Types of options, and a base class whose options are checked whenever they are set."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor
from torch.distributed import ProcessGroup

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
Gradients = Literal["mean", "sum"]
Exchange = Literal["auto", "gather", "ring"]
Direction = Literal["t2i", "i2t"]
FeatureNorm = Literal["clipped_l2norm", "l2norm", "softmax", "clipped", "none"]
Aggregate = Literal["log_sum_exp", "mean", "sum", "max"]

# A check takes the name and the value of an option, and returns the value to store.
Check = Callable[[str, Any], Any]


def word(words: Any, *, optional: bool = False) -> Check:
    """Return a check for one of the words of a Literal; with optional, also None."""

    def check(name: str, value: Any) -> Any:
        if not (optional and value is None):
            _checks.option(name, value, get_args(words))
        return value

    return check


def number(*, optional: bool = False, **bounds: float) -> Check:
    """Return a check for a number within bounds; with optional, also None."""

    def check(name: str, value: Any) -> Any:
        if optional and value is None:
            return value
        _checks.number(name, value, **bounds)
        return value if type(value) in (int, float) else float(value)  # graphs cannot hold NumPy's

    return check


def number_or_tensor(*, above: float) -> Check:
    """Return a check for a number, or for a tensor of one element, whose value is not read."""
    of_number = number(above=above)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return of_number(name, value)
        _checks.scalar(name, value)
        return value

    return check


def integer(least: int) -> Check:
    """Return a check for an integer >= least."""

    def check(name: str, value: Any) -> Any:
        _checks.integer(name, value, least)
        return operator.index(value)

    return check


def flag(name: str, value: Any) -> bool:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise UnnamedTypeError(f"{name} must be True or False, got {_checks.describe(value)}")
    return value


def group(name: str, value: Any) -> ProcessGroup | None:
    """Check for a process group, or None."""
    if value is not None:
        _checks.process_group(name, value)
    return value


class Checked:
    """An object whose options are attributes that are checked when they are set.

    Options that depend on each other are checked separately when set, and together when used.
    """

    checks: ClassVar[Mapping[str, Check]] = {}
    fixed: ClassVar[tuple[str, ...]] = ()  # options that cannot change after construction

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
