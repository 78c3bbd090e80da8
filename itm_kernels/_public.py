"""Error messages start with the name of the public function that was called.

Checks raise "unnamed" errors, whose messages leave out the function. The decorator `public` adds
the name, and raises the builtin type.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class UnnamedTypeError(TypeError):
    """A TypeError whose message does not name the public function yet."""


class UnnamedValueError(ValueError):
    """A ValueError whose message does not name the public function yet."""


class UnnamedRuntimeError(RuntimeError):
    """A RuntimeError whose message does not name the public function yet."""


UNNAMED = (UnnamedTypeError, UnnamedValueError, UnnamedRuntimeError)


def named(name: str, error: Exception) -> Exception:
    """Return an unnamed error as a builtin one whose message starts with a name."""
    message = f"{name}: {error.args[0]}"
    if isinstance(error, TypeError):
        return TypeError(message)
    if isinstance(error, ValueError):
        return ValueError(message)
    return RuntimeError(message)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the errors of a block, in constructors and setters. `names_errors` costs less."""
    try:
        yield
    except UNNAMED as error:
        raise named(name, error) from None


def names_errors(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to name its errors."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except UNNAMED as error:
                raise named(name, error) from None

        return cast(Callable[P, R], run)

    return decorate


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function, or a method of a public class, to name its errors.

    The innermost decorated function is named. The error of a surplus positional argument names the
    keywords for ids and labels: Python's own message counts `self` and names no keyword, and losses
    of other libraries take labels as the third argument.
    """
    parameters = signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    ids = [name for name in keywords if name.endswith("ids")]
    words = " and ".join(f"{name}=" for name in ids) or ", ".join(f"{k}=" for k in keywords[:3])
    remedy = f"for ids or labels use {words}" if ids else f"pass options by name ({words})"
    if not keywords:
        remedy = "it takes neither ids nor labels"
    own = positional[:1] == ["self"]
    taken = positional[own:]
    name = function.__qualname__.removesuffix(".forward").removesuffix(".__call__")

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > len(positional):
            raise TypeError(
                f"{name}: takes {len(taken)} positional arguments ({', '.join(taken)}), "
                f"got {len(args) - own}; {remedy}"
            )
        try:
            return function(*args, **kwargs)
        except UNNAMED as error:
            raise named(name, error) from None

    return cast(Callable[P, R], run)
