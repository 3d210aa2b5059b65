"""Paths to write to."""

from __future__ import annotations

from pathlib import Path

from mano_op.errors import InputError


def target_of(path: str | Path) -> Path:
    """A full path to write to; of a symbolic link, what it names, so that this is replaced and not the link.

    Raises
    ------
    InputError
        If links lead in a circle.
    """
    path = Path(path).absolute()
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path} is a symbolic link that leads nowhere ({error}): give another path"
        ) from error
