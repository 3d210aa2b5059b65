"""JSON files that describe what lies beside them, and tell whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mano_op.errors import InputError
from mano_op.files import write_file

MOST_BYTES = 2**26
_MADE_BY = {"mano_op run": "mano-op train", "mano_op classifier run": "mano-op classify train"}

_T = TypeVar("_T")


def describe(entries: Mapping[str, Any]) -> str:
    """The text of a description: its entries, and the SHA-256 of these.

    Raises
    ------
    ValueError, TypeError
        If an entry is not JSON; NaN and infinity are not.

    Examples
    --------
    >>> print(describe({"format": "note", "text": "one"}))
    {
     "format": "note",
     "text": "one",
     "sha256": "84609a0d83f54d2ac51bd0e6abefaf4b3ebcfa2d88a7b3cef38da4a4202835e2"
    }
    """
    return json.dumps({**entries, "sha256": _digest(entries)}, indent=1, allow_nan=False)


def write_description(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a description in one piece."""
    write_file(path, describe(entries))


def read_description(path: Path, kind: str, versions: tuple[int, ...]) -> dict[str, Any]:
    """The entries of a description, if it is whole, of its kind, and of a version that is read here.

    Parameters
    ----------
    path : path
    kind : str
        Its entry "format".
    versions : tuple of int
        Of these its entry "format_version" has to be one.

    Raises
    ------
    InputError
        If it is too large, no JSON object, of another format, or not as it was written. A version from before
        there were check sums has none.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MOST_BYTES}: it is no description")
    try:
        found = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not JSON ({error}): restore it, or make it again") from error
    stated = entry(path, found, "format", str), entry(path, found, "format_version", int)
    if stated[0] != kind or stated[1] not in versions:
        remedy = "use the release of mano_op that wrote it"
        if stated[0] != kind and {stated[0], kind} <= set(_MADE_BY):
            remedy = f"it is of `{_MADE_BY[stated[0]]}`, give a run of `{_MADE_BY[kind]}`"
        raise InputError(
            f"{path} has format {stated[0]!r} version {stated[1]}, expected {kind!r} version "
            f"{' or '.join(map(str, versions))}: {remedy}"
        )
    digest = found.pop("sha256", None)
    if digest is not None and digest != _digest(found):
        raise InputError(
            f"{path} is not as it was written, its sha256 is that of other entries: restore it, or, if you "
            "changed it on purpose, take the entry 'sha256' out"
        )
    return dict(found)


def entry(path: Path, description: Any, name: str, kind: type[_T]) -> _T:
    """An entry of a JSON object, if it is there and of its kind."""
    value = description.get(name) if isinstance(description, dict) else None
    if not isinstance(value, kind):
        raise InputError(
            f"{path}: {name!r} is {value!r:.100}, expected a {kind.__name__}: restore the file or make it "
            "again"
        )
    return value


def _digest(entries: Mapping[str, Any]) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
