"""What every loss shares: the reduction, the common options, the logit scale."""

import math
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels._options import Backend, Checked, Reduction, Unmatched, flag, number, word
from itm_kernels.ops.log_sum_exp import as_scalar

LOGIT_SCALE = 20.0  # 1 / .05, the default of every loss
MAX_SCALE = 100.0  # CLIP's bound of a learnt scale
# Of the options that most losses share.
SHARED = {
    "unmatched": word(Unmatched),
    "reduction": word(Reduction),
    "backend": word(Backend),
}


def check_options(function: str, reduction: object, backend: object) -> None:
    """Check the options that every loss takes."""
    _checks.option(function, "reduction", reduction, get_args(Reduction))
    _checks.option(function, "backend", backend, get_args(Backend))


def of_pairs(values: Tensor, absent: Tensor | None) -> Tensor:
    """Give texts that are negatives only the value 0, without gradient: they form no pair."""
    return values if absent is None else values.masked_fill(absent, 0)


def with_mistakes(
    values: Tensor,  # [M]
    mistaken: Tensor | None,  # [M] bool
    first: Tensor,  # [N, D], or scores [N, M]
    text: Tensor | None = None,  # [M, D]
) -> Tensor:  # [M]
    """Make the gradient NaN where the loss is, because ids that nobody could read are wrong.

    Through an entry of every input for every text: the gradient gets there.
    """
    if mistaken is None:
        return values
    nan = torch.zeros_like(values).masked_fill(mistaken, torch.nan)
    entries = (first[0],) if text is None else (first[0, 0], text[:, 0])
    for entry in entries:
        values = values + nan * entry
    return values


def reduce(values: Tensor, reduction: str, absent: Tensor | None = None) -> Tensor:
    """Reduce one value per text to the sum, the mean over pairs, or leave it."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if absent is None:
        return values.mean()
    return over_pairs(values.sum(), values.shape[0], absent)


def over_pairs(total: Tensor, texts: int, absent: Tensor | None) -> Tensor:
    """Return a sum over texts divided by the number of pairs."""
    return total / (texts if absent is None else absent.logical_not().sum().clamp_min(1))


class OptionsModule(Checked, nn.Module):
    """A Module that is a loss function with its options held as attributes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options as the function's keyword arguments."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def inverse_of_each_other(
    function: str, logit_scale: Any, temperature: Any, default: float | None = None
) -> Any:
    """Check a scale or a temperature, one of both; return the scale."""
    if temperature is None:
        logit_scale = default if logit_scale is None else logit_scale
        _checks.scalar(function, "logit_scale", logit_scale, above=0)
        return logit_scale
    if logit_scale is not None:
        raise ValueError(
            f"{function}: logit_scale and temperature are both given; "
            "pass one, each is the inverse of the other"
        )
    _checks.scalar(function, "temperature", temperature, above=0)
    return temperature.reciprocal() if isinstance(temperature, Tensor) else 1 / temperature


check_max_scale = number(optional=True, above=0)


def number_or_scale(
    function: str,
    like: Tensor,
    logit_scale: float | Tensor | None,
    temperature: float | Tensor | None,
    max_scale: float | None,
    default: float = LOGIT_SCALE,
) -> float | Tensor:
    """Check a function's scale or temperature; return the scale, bounded.

    A number stays one: to make it a tensor is a launch. A tensor is `[]`, in the scores' dtype.
    """
    check_max_scale(function, "max_scale", max_scale)
    given = inverse_of_each_other(function, logit_scale, temperature, default)
    if isinstance(given, Tensor):
        return bounded(as_scalar(given, like), max_scale)
    return given if max_scale is None else min(given, max_scale)


def scale_of(
    function: str,
    like: Tensor,
    logit_scale: float | Tensor | None,
    temperature: float | Tensor | None,
    max_scale: float | None,
    default: float = LOGIT_SCALE,
) -> Tensor:  # []
    """Return the scale of `number_or_scale` as a tensor, in the scores' dtype."""
    given = number_or_scale(function, like, logit_scale, temperature, max_scale, default)
    return as_scalar(given, like)


def bounded(scale: Tensor, max_scale: float | None) -> Tensor:
    """Bound a scale from above; beyond the bound it has no gradient."""
    return scale if max_scale is None else scale.clamp(max=max_scale)


def shown(value: float | Tensor) -> str:
    """Return a number as a Module's repr shows it; a tensor without a value is "?"."""
    if isinstance(value, Tensor):
        fake = value.is_meta or type(value) not in (Tensor, nn.Parameter)
        return "?" if fake else f"{value.item():g}"
    return f"{value:g}"


class LogitScale(Checked, nn.Module):
    """A positive scale of logits, fixed or learnt as its logarithm (as CLIP does).

    Args:
        owner: whose scale it is, for messages.
        value: the scale that training starts from, or the fixed one.
        learnable: learn the logarithm, the parameter `log`.
        max_scale: upper bound of a learnt scale; the parameter is put back to it when a training
            step uses it. None: no bound.
    """

    checks = {"max_scale": check_max_scale}
    max_scale: float | None

    def __init__(
        self, owner: str, value: float, learnable: bool, max_scale: float | None = MAX_SCALE
    ) -> None:
        super().__init__()
        self.owner = owner
        self.log = nn.Parameter(torch.empty(())) if learnable else None
        self.max_scale = check_max_scale(owner, "max_scale", max_scale)
        self.assign(value)

    def assign(self, value: float, temperature: float | None = None) -> None:
        """Set the scale, of which a temperature may be the origin."""
        _checks.number(self.owner, "logit_scale", value, above=0)
        learnt, most = self.log is not None, self.max_scale
        if learnt and most is not None and value > most:
            raise ValueError(
                f"{self.owner}: a learnt logit_scale is bounded by max_scale = {most:g}, "
                f"got {float(value):g}; pass max_scale=None or a larger one"
            )
        self._value = float(value)
        self.temperature = 1 / self._value if temperature is None else float(temperature)
        if self.log is not None:
            with torch.no_grad():
                self.log.fill_(math.log(self._value))

    @property
    def value(self) -> float:
        """The fixed scale, or the one that a learnt scale was last set to."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self.assign(value)

    def forward(self) -> float | Tensor:
        """Return the scale, as a tensor with gradient when it is learnt."""
        if self.log is None:
            return self._value
        if self.max_scale is None:
            return self.log.exp()
        highest = math.log(self.max_scale)
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            # The parameter itself, as CLIP does: a step, or its momentum, may pass the bound, and
            # beyond it a scale without a gradient would stay for good.
            with torch.no_grad():
                self.log.clamp_(max=highest)
            return self.log.exp()
        return self.log.clamp(max=highest).exp()

    def extra_repr(self) -> str:
        """Show the value in use, learnt or fixed, and the bound of a learnt one."""
        if self.log is None:
            return f"{self._value:g}, learnable=False"
        with torch.no_grad():  # looking at a scale leaves it where it is
            value = shown(self())
        return f"{value}, learnable=True, max_scale={self.max_scale}"

    if TYPE_CHECKING:
        __call__ = forward


class ScaledLoss(OptionsModule):
    """A loss with a logit scale, fixed or learnt; its inverse is the temperature.

    `logit_scale`, `temperature` and `max_scale` may be set between steps; a learnt scale goes on
    from what it is set to.
    """

    fixed = ("learnable",)
    logit_scale: LogitScale
    learnable: bool
    backend: Backend

    def __init__(
        self,
        logit_scale: float | None,
        temperature: float | None,
        learnable: bool,
        max_scale: float | None,
        default: float = LOGIT_SCALE,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        owner = type(self).__name__
        if temperature is not None:
            _checks.number(owner, "temperature", temperature, above=0)
        value = inverse_of_each_other(owner, logit_scale, temperature, default)
        self.learnable = flag(owner, "learnable", learnable)
        self.logit_scale = LogitScale(owner, value, learnable, max_scale)
        if temperature is not None:
            self.temperature = temperature

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a number as logit_scale goes into the scale that is there."""
        if name == "logit_scale" and not isinstance(value, nn.Module):
            self.logit_scale.assign(value)
        else:
            super().__setattr__(name, value)

    @property
    def temperature(self) -> float | Tensor:
        """1 / the scale in use."""
        scale = self.logit_scale()
        return scale.reciprocal() if isinstance(scale, Tensor) else self.logit_scale.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        _checks.number(type(self).__name__, "temperature", value, above=0)
        self.logit_scale.assign(1 / value, value)

    @property
    def max_scale(self) -> float | None:
        """Upper bound of a learnt scale."""
        return self.logit_scale.max_scale

    @max_scale.setter
    def max_scale(self, value: float | None) -> None:
        self.logit_scale.max_scale = check_max_scale(type(self).__name__, "max_scale", value)

    def scale(self, given: float | Tensor | None = None) -> float | Tensor:
        """Return the scale given to a call, a tensor bounded as a learnt one is, or the own."""
        if given is None:
            return self.logit_scale()
        _checks.scalar(type(self).__name__, "logit_scale", given, above=0)
        return bounded(given, self.max_scale) if isinstance(given, Tensor) else given
