"""Files of images to tensors, as data: what a damaged or hostile one leads to is an error that names it."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mano_op.errors import InputError

# Those that Pillow decodes itself; for EPS it would call Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_DEEP = ("I", "F")  # how Pillow's modes of more than 8 bits a channel begin


def channels_in(source: Path | bytes, name: str) -> int:
    """1 for an image that is grey, 3 for one in colour, by its header."""
    return _with_image(source, name, lambda image: 1 if _is_grey(image) else 3)


def decoded(source: Path | bytes, name: str, channels: int, given: bool = True) -> Tensor:
    """An image, float32 of shape ``(channels, height, width)`` in [0, 1].

    Parameters
    ----------
    source : path or bytes
    name : str
        What to call it in a message.
    channels : {1, 3}
    given : bool
        Whether the number of channels was asked for: one in colour may then become grey.

    Raises
    ------
    InputError
        If it is no image, cut short, too large to be safe, of more than 8 bits a channel, or in colour where
        nobody asked for grey.

    Examples
    --------
    >>> decoded(b"P2 3 1 255 0 51 255", "three", 1)  # the plainest format: a grey image in words
    tensor([[[0.0000, 0.2000, 1.0000]]])
    >>> decoded(b"P2 3 1 255 0 51", "three", 1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: three cannot be read as an image (...): if it was cut short, copy it again, or
    leave it out
    """

    def read(image: Any) -> Tensor:
        from PIL import Image, ImageOps

        if image.mode.startswith(_DEEP):
            raise InputError(
                f"{name} has the mode {image.mode}, more than 8 bits a channel: save it with 8, since where "
                "its white is cannot be known"
            )
        if channels == 1 and not given and not _is_grey(image):
            raise InputError(
                f"{name} is in colour, the first training image is grey: give in_channels=3, or "
                "in_channels=1 to make all of them grey"
            )
        image = ImageOps.exif_transpose(image)
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        values = np.array(image.convert("L" if channels == 1 else "RGB"))
        x = torch.from_numpy(values).float() / 255
        return x[None] if channels == 1 else x.permute(2, 0, 1).contiguous()

    return _with_image(source, name, read)


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith(_DEEP)


def _with_image(source: Path | bytes, name: str, use: Callable[[Any], Any]) -> Any:
    """What a function makes of an opened image; whatever a damaged one leads to names it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("Pillow", error) from error
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(opened, formats=_FORMATS) as image:
                return use(image)
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name} is too large to be read safely ({error}): make it smaller, or leave it out"
        ) from error
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        SyntaxError,  # which Pillow raises of a broken PNG
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise InputError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): if it was cut short, copy "
            "it again, or leave it out"
        ) from error


def missing(what: str, error: Exception) -> InputError:
    """What to say of a package that images need, and that is not installed.

    Examples
    --------
    >>> missing("Pillow", ImportError("no module named PIL"))
    InputError("Pillow is not installed (no module named PIL): pip install 'mano_op[vision]'")
    """
    return InputError(f"{what} is not installed ({error}): pip install 'mano_op[vision]'")
