"""The options of writing a store, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import StrictBool

from mano_op.data.layout import Levels
from mano_op.errors import InputError
from mano_op.options import Count, options


@options
class WriteOptions:
    """How a store is written: options of every function that makes one.

    Attributes
    ----------
    client : distributed.Client, optional
        Cluster to read, compute and write on, whose workers see the store and files under the same names. By
        default threads of this process: one for each core, or ``dask.config.set(num_workers=...)``.
    progress : bool
        Show a bar on stderr.
    resume : bool
        Continue a store from the same source and options; written chunks stay. Starts one if there is none.
    overwrite : bool
        Replace the store at the path, once the new one is finished.
    """

    client: Any = None
    progress: StrictBool = True
    resume: StrictBool = False
    overwrite: StrictBool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise InputError("resume=True and overwrite=True: pass one of them, to go on or to start anew")


@options
class StoreOptions(WriteOptions):
    """How `mano_op.write_fields` and the importers write a store, and what it says of its fields.

    Attributes
    ----------
    title : str
    provenance : mapping, optional
        Where the fields come from, in JSON types. Versions of packages are added under "versions".
    levels : {"resampled", "independent", "unknown"}
        Whether a sample's fields at two resolutions are one field resampled or two solutions.
    as_plane : bool
        Take latitude and longitude as lengths on a plane; refused otherwise.
    chunk : int, optional
        Samples to a chunk, the unit of writing and reading. By default some 1 MiB at the finest resolution.
    chunk_times : int, optional
        Times to a chunk. By default all if that is at most 8 MiB, otherwise 1 MiB.
    """

    title: str = ""
    provenance: Mapping[str, Any] | None = None
    levels: Levels = "unknown"
    as_plane: StrictBool = False
    chunk: Count | None = None
    chunk_times: Count | None = None
