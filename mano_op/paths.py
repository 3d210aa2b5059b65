"""Paths to write to."""

from __future__ import annotations

from pathlib import Path

from mano_op.errors import InputError


def target_of(path: str | Path) -> Path:
    """Return a full path to write to: of a symbolic link, which stays, the path that it names."""
    path = Path(path).absolute()
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path} is a symbolic link that leads nowhere ({error}): give another path"
        ) from error
