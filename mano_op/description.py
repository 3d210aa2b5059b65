"""JSON files that describe what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mano_op.errors import InputError

MOST_BYTES = 2**26
_T = TypeVar("_T")


def dumps(entries: Mapping[str, Any]) -> str:
    """Return the text of a description.

    Raises
    ------
    ValueError, TypeError
        If an entry is not JSON; NaN and infinity are not.

    Examples
    --------
    >>> print(dumps({"format": "note", "text": "one"}))
    {
     "format": "note",
     "text": "one"
    }
    """
    return json.dumps(entries, indent=1, allow_nan=False)


def read_description(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Return the entries of a description, if it is of its kind, and of a version that is read here.

    Parameters
    ----------
    path : path
    kind : str
        The expected entry "format".
    version : int
        The expected entry "format_version".

    Raises
    ------
    InputError
        If it is too large, no JSON object, or of another format or version.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MOST_BYTES}: it is no description")
    try:
        entries = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not JSON ({error}): restore it, or make it again") from error
    stated = entry(path, entries, "format", str), entry(path, entries, "format_version", int)
    if stated != (kind, version):
        raise InputError(
            f"{path} has format {stated[0]!r} version {stated[1]}, expected {kind!r} version {version}: "
            "use the release of mano_op that wrote it"
        )
    return dict(entries)


def entry(path: Path, description: Any, name: str, kind: type[_T]) -> _T:
    """Return an entry of a JSON object, if it is present and of its kind."""
    value = description.get(name) if isinstance(description, dict) else None
    if not isinstance(value, kind):
        raise InputError(
            f"{path}: {name!r} is {value!r:.100}, expected a {kind.__name__}: restore the file or make it "
            "again"
        )
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
