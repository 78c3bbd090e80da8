"""What the drop-in classes share: their attributes may be set between steps, as the originals'."""

from typing import Any

from torch import nn

from itm_kernels import _checks
from itm_kernels._public import UNNAMED, named
from itm_kernels.backends import CHOICES


class DropIn(nn.Module):
    """A Module that checks an attribute when it is set, not when a wrong loss shows it.

    `backend` is ours and may be set on an object: ``"auto"``, ``"native"``, ``"triton"`` or
    ``"reference"``, plain PyTorch as the originals are.
    """

    backend: str = "auto"

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            value = self._checked(name, value)
        except UNNAMED as error:
            raise named(type(self).__name__, error) from None
        super().__setattr__(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        """Return the value that an attribute takes.

        Raises:
            TypeError: the value has a type that the loss cannot use.
            ValueError: the value is out of range.
        """
        if name == "backend":
            _checks.option(name, value, CHOICES)
        return value

    def _replaces(self, original: type, *methods: str) -> bool:
        """Return whether a subclass or this object has its own version of a class's methods."""
        return any(
            name in self.__dict__ or getattr(type(self), name) is not getattr(original, name)
            for name in methods
        )
