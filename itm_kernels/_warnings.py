"""Warnings attributed to the line of user code that called into the package."""

import sys
import warnings
from os import sep
from pathlib import Path

import torch

# Frames to skip: those of the package, of torch's wrappers and of the import system.
_INNER = (
    *(str(Path(file).parent) + sep for file in (__file__, torch.__file__)),
    "<frozen importlib",
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the line of user code that called into the package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        frame = frame.f_back
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=names.get("__name__"),
        registry=names.setdefault("__warningregistry__", {}),
    )
