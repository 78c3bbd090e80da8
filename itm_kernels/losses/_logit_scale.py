"""The logit scale of the contrastive losses: fixed, given to a call, or learnt."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels._options import Backend, Checked, flag, number
from itm_kernels._public import UnnamedValueError, naming
from itm_kernels.losses._module import OptionsModule
from itm_kernels.ops._log_sum_exp import as_scalar

LOGIT_SCALE = 20.0  # 1 / .05, the default of every loss
MAX_SCALE = 100.0  # CLIP's bound of a learnt scale


def scale_or_inverse(logit_scale: Any, temperature: Any, default: float | None = None) -> Any:
    """Check that a scale or a temperature is given, not both; return the scale."""
    if temperature is None:
        logit_scale = default if logit_scale is None else logit_scale
        _checks.scalar("logit_scale", logit_scale, above=0)
        return logit_scale
    if logit_scale is not None:
        raise UnnamedValueError(
            "logit_scale and temperature are both given; pass one, each is the inverse of the other"
        )
    _checks.scalar("temperature", temperature, above=0)
    return temperature.reciprocal() if isinstance(temperature, Tensor) else 1 / temperature


check_max_scale = number(optional=True, above=0)


def checked_scale(
    like: Tensor,
    logit_scale: float | Tensor | None,
    temperature: float | Tensor | None,
    max_scale: float | None,
    default: float = LOGIT_SCALE,
) -> float | Tensor:
    """Check a function's scale or temperature; return the scale, bounded.

    A number stays a number, because a tensor of it costs a launch. A tensor becomes `[]`, in the
    dtype of the scores.
    """
    check_max_scale("max_scale", max_scale)
    given = scale_or_inverse(logit_scale, temperature, default)
    if isinstance(given, Tensor):
        return clamped(as_scalar(given, like), max_scale)
    return given if max_scale is None else min(given, max_scale)


def scale_as_tensor(
    like: Tensor,
    logit_scale: float | Tensor | None,
    temperature: float | Tensor | None,
    max_scale: float | None,
    default: float = LOGIT_SCALE,
) -> Tensor:  # []
    """Return the scale of `checked_scale` as a tensor in the dtype of the scores."""
    given = checked_scale(like, logit_scale, temperature, max_scale, default)
    return as_scalar(given, like)


def clamped(scale: Tensor, max_scale: float | None) -> Tensor:
    """Clamp a scale to its upper bound; a clamped scale has no gradient."""
    return scale if max_scale is None else scale.clamp(max=max_scale)


def shown(value: float | Tensor) -> str:
    """Return a number as the repr of a Module shows it; "?" for a tensor without a value."""
    if isinstance(value, Tensor):
        fake = value.is_meta or type(value) not in (Tensor, nn.Parameter)
        return "?" if fake else f"{value.item():g}"
    return f"{value:g}"


class LogitScale(Checked, nn.Module):
    """A positive scale of logits, fixed or learnt; as in CLIP, the parameter is its logarithm.

    Args:
        owner: name of the loss, for messages.
        value: the initial value of a learnt scale, or the fixed scale.
        learnable: learn the logarithm, the parameter `log`.
        max_scale: upper bound of a learnt scale; the parameter is clamped to it when a training
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
        with naming(owner):
            self.max_scale = check_max_scale("max_scale", max_scale)
        self.assign(value)

    def assign(self, value: float, temperature: float | None = None) -> None:
        """Set the scale; a temperature it was computed from is stored as given."""
        with naming(self.owner):
            _checks.number("logit_scale", value, above=0)
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
        """The fixed scale, or the value that a learnt scale was last set to."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self.assign(value)

    def forward(self) -> float | Tensor:
        """Return the scale; a learnt one is a tensor with gradient."""
        if self.log is None:
            return self._value
        if self.max_scale is None:
            return self.log.exp()
        highest = math.log(self.max_scale)
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            # The parameter itself is clamped, as in CLIP: an optimiser step, or its momentum, may
            # exceed the bound, and a clamped value without gradient would stay there for good.
            with torch.no_grad():
                self.log.clamp_(max=highest)
            return self.log.exp()
        return self.log.clamp(max=highest).exp()

    def extra_repr(self) -> str:
        """Show the current value and the bound of a learnt scale."""
        if self.log is None:
            return f"{self._value:g}, learnable=False"
        with torch.no_grad():  # a repr must not clamp the parameter
            value = shown(self())
        return f"{value}, learnable=True, max_scale={self.max_scale}"

    if TYPE_CHECKING:
        __call__ = forward


class ScaledLoss(OptionsModule):
    """A loss with a logit scale, fixed or learnt; its inverse is the temperature.

    `logit_scale`, `temperature` and `max_scale` may be set between steps; training of a learnt
    scale continues from the new value.
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
        with naming(owner):
            if temperature is not None:
                _checks.number("temperature", temperature, above=0)
            value = scale_or_inverse(logit_scale, temperature, default)
            self.learnable = flag("learnable", learnable)
        self.logit_scale = LogitScale(owner, value, learnable, max_scale)
        if temperature is not None:
            self.temperature = temperature

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a number assigned to logit_scale sets the existing scale."""
        if name == "logit_scale" and not isinstance(value, nn.Module):
            self.logit_scale.assign(value)
        else:
            super().__setattr__(name, value)

    @property
    def temperature(self) -> float | Tensor:
        """1 / the current scale."""
        scale = self.logit_scale()
        return scale.reciprocal() if isinstance(scale, Tensor) else self.logit_scale.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        with naming(type(self).__name__):
            _checks.number("temperature", value, above=0)
        self.logit_scale.assign(1 / value, value)

    @property
    def max_scale(self) -> float | None:
        """Upper bound of a learnt scale."""
        return self.logit_scale.max_scale

    @max_scale.setter
    def max_scale(self, value: float | None) -> None:
        with naming(type(self).__name__):
            self.logit_scale.max_scale = check_max_scale("max_scale", value)

    def scale(self, given: float | Tensor | None = None) -> float | Tensor:
        """Return the scale passed to a call, or else the Module's own.

        A tensor is clamped to `max_scale`, like a learnt scale.
        """
        if given is None:
            return self.logit_scale()
        _checks.scalar("logit_scale", given, above=0)
        return clamped(given, self.max_scale) if isinstance(given, Tensor) else given
