"""Checkpoint files, written atomically and checked when they are read."""

import os
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    """Save under another name, then rename, so that ``path`` never holds half a file."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def read_checked(path: Path, parts: dict[str, type]) -> dict[str, Any]:
    """Read a checkpoint and check that it has the required parts.

    Args:
        path: the file.
        parts: name and type of every required part.

    Returns:
        The state that `write_atomically` saved.

    Raises:
        ValueError: the file is missing, is not a checkpoint, or lacks a part. The message is one
            line and starts with the path.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        state = torch.load(path, weights_only=True)
    # On bytes that are not a checkpoint the unpickler can raise any exception.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:80]
        raise ValueError(f"{path} is not a checkpoint ({type(error).__name__}: {reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint (it holds one {type(state).__name__})")
    for name, kind in parts.items():
        if not isinstance(state.get(name), kind):
            found = type(state[name]).__name__ if name in state else "nothing"
            raise ValueError(
                f"{path} is not a checkpoint of this program (under {name!r} it holds {found}, "
                f"expected {kind.__name__})"
            )
    return state
