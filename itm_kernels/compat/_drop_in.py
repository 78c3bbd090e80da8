"""Base class of the drop-in losses, whose attributes may be set between steps."""

from typing import Any

from torch import nn

from itm_kernels import _checks
from itm_kernels._options import Backend
from itm_kernels._public import UNNAMED, named
from itm_kernels.backends import CHOICES


class DropIn(nn.Module):
    """A Module that checks its attributes when they are set.

    `backend`, which the originals do not have, may be set on an object: ``"auto"``, ``"native"``,
    ``"triton"`` or ``"reference"`` (plain PyTorch, like the originals).
    """

    backend: Backend = "auto"

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            value = self._checked(name, value)
        except UNNAMED as error:
            raise named(type(self).__name__, error) from None
        super().__setattr__(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        """Check a value and return what the attribute is set to.

        Raises:
            TypeError: the value has a type that the loss cannot use.
            ValueError: the value is out of range.
        """
        if name == "backend":
            _checks.option(name, value, CHOICES)
        return value

    def _replaces(self, original: type, *methods: str) -> bool:
        """Return whether a subclass or this object overrides any of a class's methods."""
        return any(
            name in self.__dict__ or getattr(type(self), name) is not getattr(original, name)
            for name in methods
        )
