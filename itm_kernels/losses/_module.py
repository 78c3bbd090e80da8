"""The base class of the loss Modules, and the options that most losses share."""

from typing import Any, get_args

from torch import nn
from torch.distributed import ProcessGroup

from itm_kernels import _checks
from itm_kernels._options import (
    Backend,
    Checked,
    Exchange,
    Gradients,
    Reduction,
    Unmatched,
    group,
    word,
)
from itm_kernels.distributed._agreement import Agreement

# Checks of the options that most losses share.
DISTRIBUTED = {"group": group, "gradients": word(Gradients), "exchange": word(Exchange)}
SHARED = {
    "unmatched": word(Unmatched),
    "reduction": word(Reduction),
    "backend": word(Backend),
    **DISTRIBUTED,
}


def check_options(reduction: object, backend: object) -> None:
    """Check the options that every loss has."""
    _checks.option("reduction", reduction, get_args(Reduction))
    _checks.option("backend", backend, get_args(Backend))


def spread(group: ProcessGroup | None, gradients: str, exchange: str) -> Agreement | None:
    """Return where the ranks of a batch agree; None if this process holds the whole batch."""
    if group is None:
        return None
    agreement = Agreement(group, gradients, exchange)
    if agreement.size > 1:
        return agreement
    agreement.check_options()
    return None


class OptionsModule(Checked, nn.Module):
    """A Module that calls a loss function with its own attributes as options."""

    group: ProcessGroup | None

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
