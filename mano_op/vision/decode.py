"""Decode image files safely: a damaged or hostile file raises an error that names it."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mano_op.errors import InputError

# Formats that Pillow decodes itself; for EPS it would call Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits per channel

# A file, or a row of ``datasets.Image(decode=False)``, which may be missing.
Encoded = Path | Mapping[str, Any] | None


def channels_of(image: Encoded, name: str) -> int:
    """Return the channels that the header of an image announces: 1 for grey, 3 for colour."""
    with _opened(image, name) as opened:
        return 1 if _is_grey(opened) else 3


def decode(image: Encoded, name: str, channels: int, convert: bool = True) -> Tensor:
    """Decode an image to float32 of shape ``(channels, height, width)`` in [0, 1].

    Parameters
    ----------
    image : path or mapping
        A file, or a row of ``datasets.Image(decode=False)``: its "bytes", or the "path" of a file.
    name : str
        Names the image in messages.
    channels : {1, 3}
    convert : bool
        Whether colour may become grey.

    Raises
    ------
    InputError
        If the image is damaged, too large to be safe, of more than 8 bits per channel, in colour although
        `channels` is 1 and `convert` False, or not on this machine.

    Examples
    --------
    >>> decode({"bytes": b"P2 3 1 255 0 51 255"}, "three", 1)  # PGM, the plainest format
    tensor([[[0.0000, 0.2000, 1.0000]]])
    >>> decode({"bytes": b"P2 3 1 255 0 51"}, "three", 1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: three cannot be read as an image (...): copy it again if it was cut short, make
    it smaller if it is too large, or leave it out
    """
    with _opened(image, name) as opened:
        problem = ""
        if opened.mode.startswith(_DEEP):
            problem = f"has the mode {opened.mode}, more than 8 bits per channel: save it with 8 bits"
        elif channels == 1 and not convert and not _is_grey(opened):
            problem = "is in colour, the first training image is grey: give in_channels=3, or 1 for all"
        if problem:
            raise InputError(f"{name} {problem}")
        opened = require("PIL.ImageOps").exif_transpose(opened)
        if "transparency" in opened.info or opened.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            opened = opened.convert("RGBA")
            white = require("PIL.Image").new("RGBA", opened.size, "white")
            white.alpha_composite(opened)
            opened = white
        pixels = np.array(opened.convert("L" if channels == 1 else "RGB"))
    x = torch.from_numpy(pixels).float() / 255
    return x[None] if channels == 1 else x.permute(2, 0, 1).contiguous()


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith(_DEEP)


@contextmanager
def _opened(image: Encoded, name: str) -> Iterator[Any]:
    """Open an image with Pillow; every error, until it is closed, becomes an `InputError`."""
    pillow = require("PIL.Image")
    stored: Mapping[str, Any] = {"path": image} if isinstance(image, Path) else image or {}
    content, path = stored.get("bytes"), stored.get("path")
    remedy = "copy it again if it was cut short, make it smaller if it is too large, or leave it out"
    with as_input_error(f"{name} cannot be read as an image", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, which is not used
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        if content is None and (not path or "://" in str(path)):
            raise FileNotFoundError(f"{path or 'missing'}, and nothing is fetched: save it with its images")
        with pillow.open(path if content is None else io.BytesIO(content), formats=_FORMATS) as opened:
            yield opened


@contextmanager
def as_input_error(problem: str, remedy: str) -> Iterator[None]:
    """Turn every error of another library's code, which may raise almost anything, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} ({type(error).__name__}: {error}): {remedy}") from error


def require(module: str) -> Any:
    """Import a module of the extra ``vision``; `InputError` names the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'mano_op[vision]'") from error
