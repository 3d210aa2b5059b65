"""JSON files that describe what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from mano_op.errors import InputError, refusing

MOST_BYTES = 2**26
_T = TypeVar("_T")


def dumps(entries: Mapping[str, Any]) -> str:
    """Return the text of a description.

    Raises
    ------
    ValueError, TypeError
        If an entry is not JSON; NaN and infinity are not.
    """
    return json.dumps(entries, indent=1, allow_nan=False)


def read_description(path: Path, kind: str, version: int, schema: type[_T]) -> tuple[dict[str, Any], _T]:
    """Return the entries of a description, and those of a schema, a dataclass, as its instance.

    `kind` and `version` are the expected entries "format" and "format_version". A file that is too large, no
    JSON object, of another format or version, or with an entry of another type is refused.
    """
    what, remedy = f"{path} is not JSON with a format", "restore it or make it again"
    with refusing(what, remedy, LookupError, TypeError, ValueError, RecursionError):
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"it has {size} bytes, expected at most {MOST_BYTES}")
        content = path.read_bytes()
        entries = json.loads(content, parse_constant=_refuse)
        stated = entries["format"], entries["format_version"]
    if stated != (kind, version):
        raise InputError(
            f"{path} has format {stated[0]!r:.100} version {stated[1]!r:.100}, expected {kind!r} version "
            f"{version}: use the release of mano_op that wrote it"
        )
    try:
        return entries, TypeAdapter(schema).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: {'.'.join(map(str, first['loc']))} is {first['input']!r:.100}: {first['msg']}. Restore "
            "the file or make it again"
        ) from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
