"""The base class of the loss Modules, and the options that most losses share."""

from typing import Any, get_args

from torch import nn

from itm_kernels import _checks
from itm_kernels._options import Backend, Checked, Reduction, Unmatched, word

# Checks of the options that most losses share.
SHARED = {
    "unmatched": word(Unmatched),
    "reduction": word(Reduction),
    "backend": word(Backend),
}


def check_options(reduction: object, backend: object) -> None:
    """Check the options that every loss has."""
    _checks.option("reduction", reduction, get_args(Reduction))
    _checks.option("backend", backend, get_args(Backend))


class OptionsModule(Checked, nn.Module):
    """A Module that calls a loss function with its own attributes as options."""

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
