"""A surplus positional argument is refused by a sentence that names the keyword it belongs to."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def options_by_name(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function, or a method, say which keyword ids and labels are passed by.

    Python's own message counts `self` and names no keyword; labels as the third argument are what
    losses of other libraries take.
    """
    parameters = signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    ids = [name for name in keywords if name.endswith("ids")]
    named = " and ".join(f"{name}=" for name in ids) or ", ".join(f"{k}=" for k in keywords[:3])
    remedy = f"for ids or labels use {named}" if ids else f"pass options by name ({named})"
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
        return function(*args, **kwargs)

    return cast(Callable[P, R], run)
