"""Computation of a new store's chunks, resumed after an interruption."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask import config
from dask.system import CPU_COUNT
from filelock import FileLock, Timeout
from tqdm import tqdm

from mano_op.data.layout import Layout
from mano_op.data.options import WriteOptions
from mano_op.data.schema import make_folder, path_of, refuse_present
from mano_op.data.store import FieldStore, begin_store, open_store
from mano_op.errors import InputError, refusing
from mano_op.paths import partial_path

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def only_writer(path: str | Path) -> Iterator[Path]:
    """Hold the lock on a store that is being written; yields its full path.

    The lock is a file beside the store, which the system frees when the process ends; refused if it is held.
    """
    path = path_of(path)
    file = path.with_name(path.name + ".lock")
    make_folder(path)
    lock = FileLock(file, timeout=0)
    what = f"{path} is being written by another process, which holds {file}"
    with refusing(what, "wait for it, or give another path", Timeout):
        lock.acquire()
    try:
        yield path
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it finds it gone, and tries again
        lock.release()


def write_store(
    path: str | Path,
    layout: Layout,
    write: Callable[..., int],
    writing: WriteOptions,
    *,
    title: str,
    provenance: Mapping[str, Any],
    workers: int | None = None,
    blocks: Callable[[FieldStore], Sequence[slice]] | None = None,
    parts: Callable[[FieldStore, slice], Any] | None = None,
    check: Callable[[FieldStore, slice], None] | None = None,
) -> FieldStore:
    """Complete a store whose chunks `write` makes, side by side.

    Parameters
    ----------
    path : path
    layout : Layout
        With `provenance`, what must be the same for a store to be resumed.
    write : callable
        Writes the missing chunks in a slice of samples of a store; returns their number. It is pickled.
    writing : WriteOptions
    title, provenance
        As in `mano_op.data.store.create_store`.
    workers : int, optional
        Threads; by default dask's "num_workers", or one a core.
    blocks : callable, optional
        Units of work of a store, each of one or several chunks; by default the chunks.
    parts : callable, optional
        Part of the source of a unit of work, given to `write` after the samples.
    check : callable, optional
        Compares a written chunk with the source before resuming; given the first and the last.

    `InputError` if the store exists and neither `resume` nor `overwrite` is given, options differ, another
    process writes, or a chunk is refused. Written chunks are kept for `resume`; an empty store is removed.
    """
    with only_writer(path) as path:
        store = _start(path, layout, writing, title, provenance)
        if store.complete:
            return store
        pending, total = store.pending(), store.layout.n_samples
        if check is not None and len(pending) < len(store.layout.chunks):
            written = [samples for samples in store.layout.chunks if samples not in pending]
            for samples in written[:: max(1, len(written) - 1)]:  # the first and the last
                check(store, samples)
        starts = [samples.start for samples in pending]
        units = pending if blocks is None else blocks(store)
        units = [unit for unit in units if any(unit.start <= start < unit.stop for start in starts)]
        arguments = ((store, unit, *([parts(store, unit)] if parts else [])) for unit in units)
        bar = tqdm(total=total, initial=total - store.n_pending, unit="sample", disable=not writing.progress)
        try:
            with bar:
                for _, written in _compute(write, arguments, writing.client, workers):
                    bar.update(written)
            store.check_precision()
        except InputError:
            # There is nothing to resume, or nothing that resuming would mend.
            if store.pending() in (store.layout.chunks, []):
                store.discard()
            raise

        def each(function: Callable[[slice], Any], rows: Sequence[slice]) -> list[Any]:
            chunks = [(chunk,) for chunk in rows]
            results = _compute(function, chunks, writing.client, workers)
            bar = tqdm(results, "statistics", len(rows), unit="chunk", disable=not writing.progress)
            return [result for _, result in sorted(bar, key=itemgetter(0))]

        store.finish(each)
    return store


def check_sendable(what: str, source: object) -> None:
    """Refuse what the workers of a cluster cannot be sent, such as tasks that hold a lock."""
    from distributed.protocol.pickle import dumps

    remedy = (
        "leave out client=, or give what each of them can open, as "
        "`xarray.open_dataset(file, chunks={})` does"
    )
    with refusing(f"{what} cannot be sent to the workers of client", remedy, Exception):
        dumps(source)


def _start(
    path: Path, layout: Layout, writing: WriteOptions, title: str, provenance: Mapping[str, Any]
) -> FieldStore:
    """Open a new store, or the one at `path` if it was started in the same way."""
    if writing.overwrite or not (partial_path(path).exists() or path.exists()):
        return begin_store(path, layout, title, provenance, overwrite=writing.overwrite)
    if not writing.resume:
        refuse_present(
            path, "pass resume=True to go on with it, overwrite=True to replace it, or another path"
        )
    store = open_store(path, incomplete=True)
    now = _summary(layout, json.loads(json.dumps(provenance)))
    then = _summary(store.layout, {name: store.attrs["provenance"].get(name) for name in provenance})
    different = [f"{name} is {then[name]}, not {now[name]}" for name in now if then[name] != now[name]]
    if different:
        raise InputError(
            f"{path} was started with other options: {'; '.join(different)}. To resume it, "
            "pass the options it was started with, or overwrite=True to start anew"
        )
    return store


def _summary(layout: Layout, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be the same for a store to be resumed."""
    attributes = {field.name: getattr(layout, field.name) for field in fields(layout)}
    return {**attributes, "grids": {key: str(grid) for key, grid in layout.grids.items()}, **provenance}


def _compute(
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    client: Client | None,
    workers: int | None,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each of some arguments, begun in order; yield place and result as they come."""
    with ExitStack() as stack:  # after a failure or an interrupt, what has not started is cancelled
        if client is None:
            pool = ThreadPoolExecutor(workers or config.get("num_workers", None) or CPU_COUNT)
            stack.callback(pool.shutdown, cancel_futures=True)
            futures: dict[Any, int] = {pool.submit(function, *each): i for i, each in enumerate(arguments)}
            completed = as_completed(futures)
        else:
            import distributed

            run = secrets.token_hex(8)  # a cluster takes tasks of one name for one task
            futures = {
                client.submit(function, *each, key=f"samples-{run}-{i}", priority=-i): i
                for i, each in enumerate(arguments)
            }
            stack.callback(client.cancel, list(futures))
            completed = distributed.as_completed(list(futures))
        for future in completed:
            yield futures[future], future.result()
