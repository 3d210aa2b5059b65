"""Folders checked before the work that fills them, files written in one piece, and files read as data."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mano_op.errors import InputError
from mano_op.paths import partial_path, target_of


def check_folder(folder: str | Path) -> Path:
    """Refuse a folder for results that cannot be made or written to; it is not made."""
    folder = Path(folder)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = f"no permission to write to {nearest}" if nearest.is_dir() else f"{nearest} is a file"
        raise InputError(f"{folder} cannot be a folder for results, {reason}: give another path")
    return folder


def make_folder(folder: str | Path) -> Path:
    """Make a folder for results, if need be; the errors are those of `check_folder`."""
    folder = check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_file(path: str | Path, *, overwrite: bool) -> Path:
    """Refuse a file for results that cannot be written, or that exists and may not be overwritten."""
    path = Path(path)
    check_folder(path.parent)
    if path.is_dir() or (path.exists() and not overwrite):
        exists = "there already: give another path, or overwrite=True to replace it"
        raise InputError(
            f"{path} is {'a folder: give the path of a file in it' if path.is_dir() else exists}"
        )
    return path


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file in one piece: a reader sees the old one or the new one, also when the machine stops.

    Of a symbolic link, the file that it names is written.
    """
    path = target_of(path)
    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if hasattr(os, "O_DIRECTORY"):  # where a folder can be opened, the new name is made to last too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values in one piece, for `read_tensors`."""
    import torch  # the command line checks folders without it

    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_file(path, buffer.getvalue())


def read_tensors(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that ``torch.save`` wrote; no code in it is run."""
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the path of a file that torch.save wrote")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error that follows says more
            content = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, expected a dictionary of tensors")
        return content
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values. It is not unpickled, because a pickle can "
            "run any program: if you trust its author, load it with what wrote it and save the tensors alone"
        ) from error
    # torch's reader meets a damaged file with whichever of these the damage leads to.
    except (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as tensors ({type(error).__name__}: {error}): if it was cut short, copy "
            "or write it again"
        ) from error
