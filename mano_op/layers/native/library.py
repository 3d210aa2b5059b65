"""The compiled library: built once by the machine's C++ compiler, and kept in the user's cache.

Without a compiler, or with ``MANO_OP_NATIVE=0`` in the environment, attention goes through torch's
operations, with the same results up to rounding. With ``MANO_OP_NATIVE=1`` a missing library is an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from mano_op.errors import InputError

_SOURCE = Path(__file__).with_name("window.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the library, built if need be; None without one, and the log says why.

    Raises
    ------
    InputError
        If there can be none and ``MANO_OP_NATIVE=1``, or that variable is anything but 0 or 1.
    """
    wanted = os.environ.get("MANO_OP_NATIVE", "")
    if wanted not in ("", "0", "1"):
        raise InputError(
            f"MANO_OP_NATIVE={wanted!r}, expected 0, never to use the compiled library, or 1, always"
        )
    if wanted == "0":
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # a RuntimeError without a home
        if wanted:
            raise InputError(
                f"MANO_OP_NATIVE=1, but the library cannot be built or loaded ({error}): install a C++ "
                "compiler, name it in CXX, or unset MANO_OP_NATIVE"
            ) from error
        _log.warning("no compiled library, %s: MANO takes two or three times longer", error)
        return None


def _built() -> Path:
    """The path of the library for this source, compiler and processor."""
    if os.name != "posix":
        raise OSError("it is built on Linux and macOS only")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
    # What the compiler defines tells its version and what the processor can do.
    macros = subprocess.run(
        [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout
    sources = [path.read_bytes() for path in (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*sources, " ".join(_FLAGS).encode(), macros])).hexdigest()[:20]
    folder = _cache()
    path = folder / f"native-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            library_path = Path(scratch) / path.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(library_path)]
            compiled = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if compiled.returncode:
                raise OSError(f"{' '.join(command)} failed: {compiled.stderr.strip()[-500:]}")
            os.replace(library_path, path)  # two processes may build at once
    return path


def _cache() -> Path:
    """The folder that libraries are kept in, which nobody else can write to: what is in it is run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mano_op"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone to write to")
    return folder
