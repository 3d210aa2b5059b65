"""Paths to write to."""

from __future__ import annotations

from pathlib import Path

from mano_op.errors import refusing


def target_of(path: str | Path) -> Path:
    """Return a full path to write to: of a symbolic link, which stays, the path that it names."""
    path = Path(path).absolute()
    what = f"{path} is a symbolic link that leads nowhere"
    with refusing(what, "give another path", OSError, RuntimeError):
        return path.resolve() if path.is_symlink() else path


def partial_path(path: Path) -> Path:
    """Return the path of a file or store while it is written, where a killed process leaves a part of it."""
    return path.with_name(path.name + ".partial")
