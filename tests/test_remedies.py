"""What an error of `mano_op.data` says to do is done to the letter, and nothing is lost by it."""

import ast
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from importer_files import write_hdf5
from torch.utils.data import DataLoader

from mano_op.data.channels import channels_of
from mano_op.data.check import check_store
from mano_op.data.dataset import FieldDataset, MixedDataset, collate
from mano_op.data.importers import import_netcdf, import_neuralop_pt, import_pdebench
from mano_op.data.layout import Variable
from mano_op.data.loaders import Reading, Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.data.store import create_store, open_store
from mano_op.data.times import common_times
from mano_op.data.well import WellSamples
from mano_op.data.write import write_fields
from mano_op.errors import InputError
from mano_op.grid import Axis, Grid

SPLITS = {"train": 3, "test": 1}
STEPS = (0, 1, 2)

CASES: dict[str, Callable[[Path], None]] = {}


def cases(call, /, *table):
    """Of each row: options that are refused, a part of the message, and those that it asks for, if any.

    A data set stands for fields at 8 points. Options may be a function of the message and the refused ones.
    """
    for broken, part, *remedy in table:
        broken = {"fields": {8: broken}} if isinstance(broken, xr.Dataset) else broken
        name = f"{call.__name__}({', '.join(broken)}): {part} ({len(CASES)})"
        CASES[name] = partial(call_anew, call=call, broken=broken, part=part, remedy=(*remedy, {})[0])


def call_anew(folder, *, call, broken, part, remedy):
    message = refused(call, folder, part=part, **broken)
    remedy = remedy(message, broken) if callable(remedy) else remedy
    call(folder, **({"fields": {8: remedy}} if isinstance(remedy, xr.Dataset) else remedy))


def refused(call, *args, part, **options):
    """The message of a call that is refused, which has that part."""
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert part in message, message
    return message


def violation_of(store, part):
    """The one violation of a store that has that part."""
    (violation,) = [text for text in check_store(store, progress=False) if part in text]
    return violation


def option(name, after="", **others):
    """Of messages, the value that they give an option: of "give domain={'x': (0, 1)}", the dictionary."""
    value = r"""(\{.*?\}|\[.*?\]|\(.*?\)|'.*?'|".*?"|[\w.]+)"""
    pattern = rf"{re.escape(after)} ?{name}={value}"
    return lambda message, broken=None: {name: ast.literal_eval(re.search(pattern, message)[1]), **others}


def code(message, start, /, dots=None, **names):
    """The value of the Python in a message that begins like that, between backticks."""
    (text,) = [text for text in re.findall("`([^`]+)`", message) if text.startswith(start)]
    if dots is not None:
        text = text.replace("...", dots)
    return eval(text, {"np": np, "xr": xr, "xarray": xr, "Axis": Axis, **names})


def data(start, key=8, *, to=None, dots=None, **others):
    """Of messages, the fields that their Python makes of the data set that was refused."""

    def of(message, broken):
        fields = dict(broken["fields"])
        fields[key if to is None else to] = code(message, start, dots, data=fields.pop(key), **broken)
        return {"fields": fields, **others}

    return of


def search(pattern, name, of=str, **others):
    """Of messages, the value of an option that the group of a pattern has."""
    return lambda message, broken: broken | {name: of(re.search(pattern, message)[1]), **others}


def wave(role, sample, x, step=0):
    """The value of a field: what each sample, point and time has alone."""
    values = sample + np.sin(2 * np.pi * x) / 4
    return values + 0 * step if role == "input" else 10 * values + 100 * step


def flow(n=8, samples=range(4), steps=None, *, registration="cell", stop=1.0, labels=None):
    """Fields `a` and `u` on the axis x, u at some times if they are given."""
    x = Axis("x", n, 0.0, stop, registration).points
    sample = np.asarray(samples, dtype=float)[:, None]
    coordinates = {"x": x} | ({} if labels is None else {"sample": labels})
    u = wave("output", sample, x)
    dims = ("sample", "x")
    if steps is not None:
        dims, coordinates["time"] = ("sample", "time", "x"), np.asarray(steps, dtype=float)
        u = wave("output", sample[..., None], x, np.asarray(steps)[:, None])
    return xr.Dataset({"a": (("sample", "x"), wave("input", sample, x)), "u": (dims, u)}, coordinates)


def assert_holds(store, *, samples=range(4), steps=None, levels=None):
    """A complete store has the waves of all samples and times, at the points that it says."""
    assert store.complete and store.layout.n_samples == len(samples)
    assert len(store.layout.times) == len(steps or ())
    assert levels is None or list(store.grids) == levels
    for key, grid in store.grids.items():
        number = np.asarray(samples, dtype=float)[store.layout.samples(key)][:, None]
        for variable in store.variables:
            step = np.array(steps)[:, None] if variable.time else 0
            expected = wave(
                variable.role, number[..., None] if variable.time else number, grid.points[0], step
            )
            stored = store.read(key, variable.name)
            np.testing.assert_allclose(stored + variable.reference, expected, rtol=1e-5, atol=1e-5)


PLAIN = {
    "inputs": ["a"],
    "outputs": ["u"],
    "splits": SPLITS,
    "registration": "cell",
    "boundary_conditions": {"x": "open"},
    "domain": {"x": (0.0, 1.0)},
    "progress": False,
}


def write(folder, fields=None, *, kept=None, steps=None, levels=None, name="a.zarr", **changes):
    """`write_fields`, of waves that the store then has: `kept` samples, at `steps`."""
    options = PLAIN | changes
    fields = {8: flow()} if fields is None else fields
    store = write_fields(folder / name, fields, **{k: v for k, v in options.items() if v is not None})
    steps = range(len(store.layout.times)) if steps is None else steps
    assert_holds(store, samples=range(4) if kept is None else kept, steps=steps, levels=levels)
    return store


WRAPPED = {"registration": "node", "boundary_conditions": {"x": "periodic"}, "domain": None}


def metres(fields):
    fields["u"].attrs["units"] = "m"
    return fields


def case_a_path_for_a_data_set(folder):
    flow().to_netcdf(folder / "flow.nc", engine="scipy")
    message = refused(write, folder, {8: folder / "flow.nc"}, part="open a file with `xarray.open_dataset`")
    with code(message, "xarray.open_dataset")(folder / "flow.nc") as data:
        write(folder, {8: data})


def write_beginning(folder, **changes):
    data = flow(steps=STEPS)
    first = {8: data.assign(a=data["u"].isel(time=0, drop=True))}
    store = write_fields(folder / "a.zarr", first, **PLAIN, **changes)
    for name in ("a", "u"):
        np.testing.assert_array_equal(store.read(8, name), first[8][name].values.astype(np.float32))
    assert {v.name: v.initial_of for v in store.variables if v.initial_of} == changes["initial"]


cases(
    write_beginning,
    ({}, "so that a step is not given where the field began", option("initial")),
    ({}, "if it is a parameter", option("initial", "or ")),
)


def interrupted(folder, **changes):
    """A store of the first three of four samples: the last had a NaN."""
    data = flow()
    data["u"][3, 0] = np.nan
    message = refused(write, folder, {8: data}, chunk=1, part="expected finite values", **changes)
    assert len(open_store(folder / "a.zarr", incomplete=True).pending()) == 1
    return message


def case_other_values_than_those_written(folder):
    interrupted(folder)
    message = refused(write, folder, {8: flow() + 1}, chunk=1, resume=True, part="were written with other")
    assert "pass the data sets that it was begun with" in message
    changed = {8: flow(samples=range(1, 5))}
    message = refused(write, folder, changed, chunk=1, resume=True, part="to start anew")
    write(folder, chunk=1, resume=True)
    write(folder, changed, kept=range(1, 5), chunk=1, **option("overwrite")(message))


ABCD = list("abcd")


def at(times, n=8):
    """The waves at the first three steps, with these for times."""
    return flow(n, steps=STEPS).assign_coords(time=times)


def days(n=8, **attributes):
    return at(("time", [0.0, 1.0, 2.0], attributes), n)


def case_times_that_one_resolution_has(folder):
    fields = {8: flow(steps=STEPS), 16: flow(16, steps=STEPS[::2])}
    message = refused(write, folder, fields, part="Keep those that all have")
    assert "from mano_op.data.times" in message

    def write_all(path, fields):
        return write(path, fields, steps=STEPS[::2], levels=["r8", "r16"])

    given = {"write_fields": write_all, "path": folder, "common_times": common_times, "fields": fields}
    code(message, "write_fields", dots="**{}", **given)


def write_common(folder, fields):
    return write(folder, common_times(fields), steps=STEPS, levels=["r8", "r16"])


cases(
    write_common,
    (
        {"fields": {8: days(units="s"), 16: days(16)}},
        "in one unit",
        {"fields": {n: days(n, units="s") for n in (8, 16)}},
    ),
    (
        {"fields": {8: at([0.0, 1.0, 2.0]), 16: at([10.0, 11.0, 12.0], 16)}},
        "Count them from one origin",
        {"fields": {8: at([0.0, 1.0, 2.0]), 16: at(np.array([10.0, 11.0, 12.0]) - 10, 16)}},
    ),
)


ROUNDED = {8: flow().assign_coords(x=np.round(flow()["x"].values, 2))}


def stretched():
    """The waves on an axis that is not uniform."""
    x = np.linspace(0, 1, 65) ** 1.1
    sample = np.arange(4.0)[:, None]
    fields = {"a": wave("input", sample, x), "u": wave("output", sample, x)}
    return xr.Dataset({name: (("sample", "x"), field) for name, field in fields.items()}, {"x": x})


def case_points_that_are_not_uniform(folder):
    domain = {"domain": {"x": (0.0, 1.0)}, "registration": "node_both"}
    message = refused(write, folder, {65: stretched()}, part="interpolate to a uniform grid first", **domain)
    uniform = code(message, "data.interp", data=stretched())
    assert "and give its registration and domain" in message
    store = write_fields(folder / "a.zarr", {65: uniform}, **PLAIN | domain)
    expected = wave("output", np.arange(4.0)[:, None], store.grids["r65"].points[0])
    np.testing.assert_allclose(store.read(65, "u"), expected, atol=1e-2)


def case_the_domain_of_rounded_points(folder):
    x = np.round(flow(6, stop=0.1)["x"].values, 3)
    fields = {6: flow(6, stop=0.1).assign_coords(x=x)}
    message = refused(write, folder, fields, domain=None, part="or what the data's authors say, for all axes")
    store = write_fields(folder / "a.zarr", fields, **PLAIN | option("domain")(message))
    np.testing.assert_allclose(store.grids["r6"].points[0], x, atol=1e-3)
    np.testing.assert_array_equal(store.read(6, "u"), fields[6]["u"].values.astype(np.float32))


CELLS, COARSE = (Grid((Axis("x", n, registration="cell"),)) for n in (8, 4))
RING = Grid((Axis("x", 8, registration="cell", periodic=True),))
AROUND = {"grids": [RING], "boundary_conditions": {"x": "periodic"}}
TWO = {"grids": [COARSE, CELLS], "levels": "resampled"}
A, U = {"name": "a", "role": "input"}, {"name": "u", "role": "output"}
MOVING = {"variables": [A, {**U, "time": True}], "times": (0.0, 0.5, 1.0)}
LAYOUT = {
    "grids": [CELLS],
    "variables": [A, U],
    "splits": SPLITS,
    "title": "Waves",
    "provenance": {},
    "levels": "unknown",
    "boundary_conditions": {"x": "open"},
    "chunk": 1,
}


def begin(folder, name="b.zarr", **changes):
    """A store of waves that is laid out and empty."""
    options = LAYOUT | changes
    options["variables"] = [Variable(**about) for about in options["variables"]]
    return create_store(folder / name, **options)


def waves(store, key, samples, steps=STEPS):
    """The fields of some samples at a level."""
    number = np.asarray(store.layout.samples(key)[store.layout.rows_of(key, samples)], dtype=float)[:, None]
    x = store.grids[key].points[0]
    return {
        variable.name: wave(variable.role, number[..., None], x, np.asarray(steps)[:, None])
        if variable.time
        else wave(variable.role, number, x)
        for variable in store.variables
    }


def fill(store, most=None):
    for samples in store.pending()[:most]:
        rows = {key: store.layout.rows_of(key, samples) for key in store.grids}
        held = [key for key, some in rows.items() if some.start < some.stop]
        store.write(samples, {key: waves(store, key, samples) for key in held})
    return store


def create(folder, *, kept=range(4), steps=None, **changes):
    """A complete store of waves."""
    store = fill(begin(folder, **changes))
    store.finish()
    assert_holds(store, samples=kept, steps=steps)
    return store


def case_a_file_for_a_folder(folder):
    (folder / "file").write_text("")
    refused(write, folder / "file", part="give a path in a folder")
    refused(create, folder / "file", part="give a path in a folder")
    write(folder)


def case_fields_that_no_worker_can_be_sent(folder):
    fields, lock = flow(), threading.Lock()

    def locked(block, lock=lock):
        with lock:
            return block

    array = dask.array.from_array(fields["u"].values, chunks=(2, 8))
    fields["u"] = (("sample", "x"), array.map_blocks(locked, dtype=float, meta=np.empty((0, 0))))
    message = refused(write, folder, {8: fields}, client=SimpleNamespace(), part="leave out client=")
    write(folder, {8: fields})
    fields.to_netcdf(folder / "flow.nc", engine="scipy")
    with code(message, "xarray.open_dataset", file=folder / "flow.nc") as sent:
        write(folder, {8: sent}, name="b.zarr")


def case_a_store_that_is_there(folder):
    interrupted(folder)
    refused(open_store, folder / "a.zarr", part="run again what was making it with resume=True")
    refused(write, folder, chunk=1, resume=True, overwrite=True, part="pass one of them, to go on")
    message = refused(write, folder, chunk=1, part="was begun and not finished")
    write(folder, chunk=1, name="b.zarr")
    write(folder, chunk=1, **option("resume")(message))
    message = refused(write, folder, {8: flow(samples=range(1, 5))}, part="exists; pass resume=True")
    write(folder, {8: flow(samples=range(1, 5))}, kept=range(1, 5), **option("overwrite")(message))


def case_a_store_with_other_options(folder):
    interrupted(folder)
    message = refused(write, folder, chunk=2, resume=True, part="pass the options it was started with")
    write(folder, resume=True, chunk=int(re.search(r"chunk is (\d+)", message)[1]))
    message = refused(write, folder, chunk=2, resume=True, part="to start anew")
    write(folder, chunk=2, **option("overwrite")(message))


def case_a_partial_store(folder):
    fill(begin(folder), most=2)
    message = refused(open_store, folder / "b.zarr", part="2 of 4 samples are written")
    pending = code(message, "open_store(path, ", open_store=open_store, path=folder / "b.zarr")
    store = open_store(folder / "b.zarr", incomplete=True)
    for samples in pending:
        store.write(samples, {8: waves(store, "r8", samples)})
    code(message, "finish()", finish=store.finish)
    assert_holds(open_store(folder / "b.zarr"))


def case_a_store_that_is_finished(folder):
    store = create(folder)
    chunk = {8: waves(store, "r8", slice(0, 1))}
    message = refused(store.write, slice(0, 1), chunk, part="to write it anew, create it with overwrite=True")
    create(folder, **option("overwrite")(message))


cases(
    write,
    (
        {"fields": flow(64)},
        "expected a data set for each resolution",
        search("({.*?})", "fields", lambda fields: eval(fields, {"data": flow(64)})),
    ),
    ({"inputs": "a"}, "expected a list of names", option("inputs", "list of names:")),
    (
        {"fields": {8: flow(steps=STEPS)["u"]}, "inputs": []},
        "expected a Dataset",
        lambda said, broken: {
            "fields": {8: code(said, "xarray.Dataset", name="u", array=broken["fields"][8])},
            "inputs": [],
        },
    ),
    (flow().rename(sample="run"), "expected ('sample', ...)", data("data.rename")),
    (flow().transpose("x", "sample"), "('sample', ...)", data("data.transpose", dots="'sample', 'x'")),
    (
        {"fields": {8: flow().isel(sample=2)}, "splits": {"train": 1}},
        "for a single sample",
        data("data.expand_dims", splits={"train": 1}, kept=[2]),
    ),
    (flow().drop_vars("x"), "8 that increase", data("data.assign_coords", dots="np.arange(0.5, 8) / 8")),
    (
        flow().assign_coords(x=[*flow()["x"].values[:7], np.nan]),
        "expected finite numbers",
        data("data.isel", to=7, domain={"x": (0.0, 0.875)}, levels=["r7"]),
    ),
    (flow().isel(x=[0, 0, *range(1, 8)]), "and each once", data("data.drop_duplicates", levels=["r8"])),
    (
        {"fields": {9: flow(9, registration="node_both")}, **WRAPPED},
        "an axis that wraps has each point once: drop the last",
        data("data.isel", 9, to=8, levels=["r8"], **WRAPPED),
    ),
    (
        {"boundary_values": {"pressure": 0.0}},
        "boundary_values of pressure",
        search(r", (\w+)$", "boundary_values", lambda name: {name: 0.0}),
    ),
    (
        {"fields": {8: flow(), 16: flow(16, [3])}},
        "number them from 0 to 3 in the order of the splits",
        data("data.assign_coords", 16, dots="[3]", levels=["r8", "r16"]),
    ),
    (
        flow().assign_coords(split=("sample", ["test", "train", "train", "train"])),
        "or leave the coordinate out",
        data("data.drop_vars"),
    ),
    (flow(labels=ABCD).isel(sample=[0, 1, 1, 2, 3]), "each sample once", data("data.drop_duplicates")),
    (flow(labels=[0.5, np.nan, 2.5, 3.5]), "sample 1 has no label", data("data.drop_vars")),
    (
        {"fields": {8: flow(labels=ABCD), 16: flow(16, labels=list("abce"))}},
        "which no sample at 8 is",
        data("data.assign_coords", 16, dots="list('abcd')", levels=["r8", "r16"]),
    ),
    (
        {"fields": {8: flow(labels=ABCD), 16: flow(16, [1, 0, 2, 3], labels=list("bacd"))}},
        "expected one order at all resolutions",
        data("fields[16]", 16, levels=["r8", "r16"]),
    ),
    (at([0.0, 1.0, np.nan]), "a time is missing", data("data.isel", steps=STEPS[:2])),
    (at(["2000-01-01", "2000-01-02", "2000-01-03"]), "convert dates in words", data("data.assign_coords")),
    (days().drop_vars("time"), "3 of them", data("data.assign_coords", dots="[0.0, 0.5, 1.0]")),
    (
        days(units="days since 2000-01-01", calendar="360_day"),
        "dates of the calendar '360_day'",
        lambda said, broken: code(said, "data.assign", data=broken["fields"][8], days=[0.0, 1.0, 2.0]),
    ),
    (days(units="days since then"), "correct the attribute units", days(units="days since 2000-01-01")),
    ({"fields": ROUNDED, "domain": None}, "so its ends are known no better", {"fields": ROUNDED}),
    ({"domain": None}, "If it is, give domain=", option("domain", "give ")),
    ({"fields": {1: flow(1)}, "domain": None}, "give `domain`", {"fields": {1: flow(1)}, "levels": ["r1"]}),
    ({"registration": "node"}, "would fit", option("registration", ": ")),
    (
        flow(stop=2.0),
        "in registration 'cell' these points lie on",
        search(
            r"points lie on (\[.*?\])", "domain", lambda ends: {"x": tuple(eval(ends))}, registration="cell"
        ),
    ),
    (
        {"fields": {16: flow()}},
        "use its shape as its key",
        search(r"shape (\(.*\)); expected", "fields", lambda shape: {ast.literal_eval(shape): flow()}),
    ),
    (
        {"fields": {8: flow().rename(a="__a")}, "inputs": ["__a"]},
        "that does not begin with '__'",
        data("data.rename", inputs=["field"]),
    ),
    ({"fields": {8: flow().rename(u="u@+1")}, "outputs": ["u@+1"]}, "of channels do", data("data.rename")),
)


def case_a_store_in_its_place_to_discard(folder):
    store = create(folder)
    refused(store.discard, part="remove it by hand if it is to go")
    assert_holds(open_store(store.path))
    shutil.rmtree(store.path)
    create(folder)


def predict(folder, *, time_steps=None, at=None, name="b.zarr", **layout):
    """The samples of a store that has them: all of its runs or times."""
    place = folder / name
    store = open_store(place) if place.exists() else fill(begin(folder, name, **layout))
    if not store.complete:
        store.finish()
    data = FieldDataset(store, 8, time_steps=time_steps, at=at)
    u = store.read(8, "u")[store.layout.rows("r8", "train")]
    if time_steps is None:
        times = list(store.layout.times)
        expected = [u[:, [times.index(time) for time in at]] if at else u[:, None]]
    else:
        first, length = time_steps[0], sum(time_steps)
        expected = [u[:, i + first : i + length] for i in range(u.shape[1] - length + 1)]
    samples = np.stack(expected, axis=1).reshape(-1, *expected[0].shape[1:])
    np.testing.assert_array_equal(torch.stack([sample["y"] for sample in data]), samples)


UNEVEN = {**MOVING, "times": (0.0, 0.5, 2.0)}
STEADY_TOO = {**MOVING, "variables": [*MOVING["variables"], {**U, "name": "v"}]}
DRIVEN = {"variables": [{**A, "time": True}, {**U, "time": True}], "times": (0.0, 0.5, 1.0)}

cases(
    predict,
    ({"time_steps": (1, 1)}, "leave them out"),
    ({**MOVING}, "so expected one of them", {"time_steps": (1, 1)}),
    ({**MOVING, "time_steps": (1, 1), "at": [1.0]}, "or at=[times]", {"at": [1.0]}),
    ({**DRIVEN, "at": [1.0]}, "use time_steps=(steps_in, steps_out)", {"time_steps": (2, 1)}),
    (
        {**MOVING, "at": [0.7]},
        "all of the store's times, 0, 0.5, 1",
        search(".*times, (.*)", "at", lambda times: list(ast.literal_eval(times))),
    ),
    ({**MOVING, "at": []}, "expected at least one time", {"at": [0.5]}),
    ({**MOVING, "time_steps": (1, 1, 1)}, "expected two numbers", {"time_steps": (1, 1)}),
    ({**MOVING, "time_steps": (3, 1)}, "give at most 3 steps", {"time_steps": (2, 1)}),
    ({**UNEVEN, "time_steps": (1, 1)}, "or predict times by themselves with at=", {"at": [2.0]}),
    (
        {**STEADY_TOO, "at": [1.0]},
        "put the steady ones into a store of their own",
        {**MOVING, "at": [1.0], "name": "c.zarr"},
    ),
)


def case_a_data_set_in_a_fork(folder):
    data = FieldDataset(create(folder), 8, cache_bytes=0)
    expected = torch.stack([sample["y"] for sample in data])
    data._process += 1
    message = refused(data.__getitem__, 0, part="this process was forked from the one that made the data set")
    method = re.search(r"multiprocessing_context='(\w+)'", message)[1]
    data._process -= 1
    loader = DataLoader(data, 3, collate_fn=collate, num_workers=1, multiprocessing_context=method)
    (batch,) = loader
    assert torch.equal(batch["y"], expected)


def case_parts_of_other_channels(folder):
    one = FieldDataset(create(folder), 8)
    swapped = [{**U, "role": "input"}, {**A, "role": "output"}]
    other = FieldDataset(create(folder, name="c.zarr", variables=swapped), 8)
    refused(MixedDataset, [one, other], part="and the same channels for all")
    assert len(MixedDataset([one, FieldDataset(open_store(one.store.path), 8, "test")])) == 4


def case_a_batch_of_two_resolutions(folder):
    store = create(folder, **TWO)
    mixed = MixedDataset([FieldDataset(store, 4), FieldDataset(store, 8)])
    refused(mixed.__getitems__, [0, 3], part="batch_sampler=ResolutionBatchSampler(...), as `field_loaders`")
    loader = DataLoader(mixed, batch_sampler=ResolutionBatchSampler([3, 3], 2), collate_fn=collate)
    seen = [(round(float(x.mean())), x.shape[-1]) for batch in loader for x in batch["x"]]
    assert sorted(seen) == [(i, n) for i in range(3) for n in (4, 8)]


def load(folder, name="b.zarr", seen=range(3), **changes):
    """Loaders, and each sample of the training split out of them."""
    moving = changes.get("time_steps") is not None or changes.get("rollout") or changes.get("pushforward")
    place = folder / name
    if not place.exists():
        create(folder, name=name, steps=STEPS if moving else None, **TWO, **(MOVING if moving else {}))
    options = {"train": 8, "test": [4, 8], "batch_size": 2} | changes
    loaders = field_loaders(place, **options)
    numbers = [round(float(x[0].mean())) for batch in loaders.train for x in batch["x"]]
    levels = options["train"].resolutions if isinstance(options["train"], Mixed) else [options["train"]]
    runs = 1 + len(STEPS) - sum(options["time_steps"]) - options.get("pushforward", 0) if moving else 1
    if seen is not None:
        assert sorted(numbers) == sorted([*seen] * len(levels) * runs)
    for resolution, loader in loaders.test.items():
        for batch in loader:
            assert batch["y"].shape[-1] == resolution
    return loaders


cases(
    load,
    ({"train": [4, 8]}, "give Mixed([4, 8])", search("give (.*)", "train", eval)),
    (
        {"reading": Reading(shuffle="chunks"), "train": Mixed([4, 8])},
        "or 'samples'",
        search(r"or '(\w+)", "reading", lambda order: Reading(shuffle=order)),
    ),
    ({"test": 8}, "expected a list", option("test", "such as ")),
    (
        {"splits": Splits(hold_out=0.1)},
        "give 0.333 to 0.667",
        search(r"give ([\d.]+) to", "splits", lambda share: Splits(hold_out=float(share)), seen=None),
    ),
    ({"time_steps": (1, 2), "rollout": 2}, "time_steps=(steps_in, 1)", {"time_steps": (1, 1), "rollout": 2}),
    ({"time_steps": ("1", 1), "rollout": 1}, "steps_in='1'", {"time_steps": (1, 1), "rollout": 1}),
    ({"time_steps": (1, 2), "pushforward": 1}, "(steps_in, 1)", {"time_steps": (1, 1), "pushforward": 1}),
    ({"time_steps": (1, 1), "pushforward": 3}, "give at most 1", search(r"(\d+)$", "pushforward", int)),
)


cases(
    lambda folder, **options: Mixed([4, 8], **options),
    ({"ratios": [1.0]}, "expected a list, one for each resolution", {"ratios": [1.0, 2.0]}),
)


UNIT = {"mean": 0.0, "std": 2.0}
LABELS = ({"a": UNIT}, {"u": UNIT})
STEP = ({"a": UNIT, "u@+0": UNIT}, {"u@+1": UNIT})


def case_no_split_to_take_statistics_of(folder):
    trained = create(folder)
    store = create(folder, name="c.zarr", splits={"test": 4})
    message = refused(FieldProcessor.from_store, store, part="has no split 'train'; it has test;")
    assert message.endswith("take the processor of the store that the model is trained on")
    refused(
        FieldProcessor.from_store, begin(folder, "d.zarr"), part="no statistics of 'a'; it has none; finish"
    )
    processor = FieldProcessor.from_store(trained)
    assert processor.in_mean.item() == pytest.approx(trained.read(8, "a")[:3].mean(), rel=1e-5)


def case_steps_that_begin_later(folder):
    processor = FieldProcessor(*STEP).eval()
    data = {"x": torch.rand(2, 2, 8), "y": torch.rand(2, 2, 8)}
    refused(processor.preprocess, data, step=1, part="without a step 0; a rollout begins there")
    assert [processor.preprocess(data, step=step)["y"].shape[1] for step in (0, 1)] == [1, 1]


def case_a_rollout_of_two_steps_at_once(folder):
    two = FieldProcessor({"a": UNIT, "u@+0": UNIT}, {"u@+1": UNIT, "u@+2": UNIT})
    message = refused(two.check_rollout, part="expected one step out, time_steps=(steps_in, 1)")
    store = create(folder, **MOVING, steps=STEPS)
    time_steps = eval(re.search(r"time_steps=(\(.*?\))", message)[1], {"steps_in": 1})
    processor = FieldProcessor.from_store(store, channels=channels_of(store.layout, time_steps))
    processor.check_rollout()
    sample = FieldDataset(store, 8, time_steps=time_steps)[0]
    known = processor.next_known(sample["x"][None], sample["y"][None])[0]
    assert torch.equal(known, FieldDataset(store, 8, time_steps=time_steps)[1]["x"])


def case_a_processor_without_a_model(folder):
    processor = FieldProcessor(*LABELS).eval()
    x = torch.rand(1, 1, 8)
    message = refused(processor, x=x, part="give it one with `processor.wrap(model)`")
    wrapped = code(message, "processor.wrap", processor=processor, model=torch.nn.Identity())
    torch.testing.assert_close(wrapped(x=x)[0], x)


def case_a_state_of_other_channels(folder):
    processor = FieldProcessor({"b": UNIT}, {"u": UNIT})
    message = refused(
        processor.load_state_dict, FieldProcessor(*LABELS).state_dict(), part="the state is of channels"
    )
    channels = ast.literal_eval(re.search(r"channels (\{.*?\}),", message)[1])
    made = FieldProcessor(*({name: UNIT for name in channels[role]} for role in ("inputs", "outputs")))
    made.load_state_dict(FieldProcessor(*LABELS).state_dict())
    assert made.to_dict() == FieldProcessor(*LABELS).to_dict()


class TheWell:
    """What is used of The Well's own data set."""

    n_steps_input, n_steps_output, max_rollout_steps = 1, 1, 100
    core_field_names, core_constant_field_names = ["u"], []

    def __init__(self, *, use_normalization=False, boundary_return_type=None, grid_type="cartesian"):
        names = {"field_names": {0: ["u"]}, "constant_field_names": {}, "n_spatial_dims": 1}
        self.metadata = SimpleNamespace(**names, grid_type=grid_type)
        self.use_normalization, self.boundary = use_normalization, boundary_return_type

    def __len__(self):
        return 1

    def __getitem__(self, index):
        u = torch.arange(2.0)[:, None, None].expand(2, 4, 1)
        ends = {"boundary_conditions": torch.full((1, 2), 2)} if self.boundary else {}
        return {"input_fields": u[:1], "output_fields": u[1:], **ends}


def well_samples(folder, given=None, **options):
    samples = WellSamples(TheWell(**options) if given is None else given)
    assert torch.equal(samples[0]["y"], torch.ones(1, 4)) and samples.outputs == ("u@+1",)
    return samples


cases(
    well_samples,
    ({"given": [1, 2]}, "expected a the_well.data.WellDataset"),
    ({"grid_type": "spherical"}, "project the fields onto a plane first"),
    ({"use_normalization": True}, "use_normalization=False", option("use_normalization", "make it with ")),
)


def case_statistics_of_other_components(folder):
    statistics = {"mean": {"u": [1.0, 2.0]}, "std": {"u": 3.0}}
    message = refused(well_samples(folder).processor, statistics, part="expected (1,)")
    n = int(re.search(r"expected \((\d+)", message)[1])
    statistics["mean"]["u"] = statistics["mean"]["u"][:n]
    assert well_samples(folder).processor(statistics).out_mean.item() == 1.0


def case_a_data_set_without_conditions(folder):
    message = refused(lambda: well_samples(folder).periodic, part="no entry 'boundary_conditions'")
    assert well_samples(folder, **option("boundary_return_type")(message)).periodic == (True,)


def case_an_input_that_is_the_first_time(folder):
    store = begin(folder, **MOVING)
    for samples in store.pending():
        fields = waves(store, "r8", samples)
        store.write(samples, {8: fields | {"a": fields["u"][:, 0]}})
    store.finish()
    kept = {name: store.read(8, name) for name in ("a", "u")}
    message = violation_of(store.path, "set initial_of='u' at all resolutions")
    for key in store.grids:
        root = zarr.open_group(store.path, mode="r+", use_consolidated=False)
        root[f"{key}/a"].attrs.update(option("initial_of", "set ")(message))
    zarr.consolidate_metadata(store.path)
    assert check_store(store.path, progress=False) == []
    mended = open_store(store.path)
    assert mended.variables[0].initial_of == "u"
    for name, values in kept.items():
        np.testing.assert_array_equal(mended.read(8, name), values)


def import_pde(folder, change=None, **options):
    """Import a file of PDEBench with the waves, with changes to its content."""
    fields = flow(steps=STEPS)
    content = {
        "tensor": fields["u"].values,
        "x-coordinate": fields["x"].values,
        "t-coordinate": np.arange(4.0),
    }
    content |= change or {}
    write_hdf5(folder / "waves.hdf5", {name: array for name, array in content.items() if array is not None})
    about = {"boundary_conditions": {"x": "periodic"}, "domain": {"x": (0.0, 1.0)}, "progress": False}
    store = import_pdebench(folder / "p.zarr", {"train": [folder / "waves.hdf5"]}, **about | options)
    assert_holds(store, steps=STEPS)


NAMED = {"change": {"Vx": flow(steps=STEPS)["u"].values, "tensor": None}}

cases(
    import_pde,
    (NAMED | {"variables": ("u",)}, "leave variables out", NAMED),
    ({"variables": ("u", "v")}, "each once: give 1", {"variables": ("v",)}),
    ({"change": {"tensor": flow(steps=STEPS)["u"].values.swapaxes(1, 2)}}, "`mano_op.write_fields`"),
)


def import_waves(folder, files=None, *, parts=None, name="n.zarr", **options):
    """Import NetCDF files of the waves, of the first three samples and of the last one."""
    paths = [folder / "0.nc", folder / "1.nc"]
    for path, part in zip(paths, parts or [flow(samples=range(3)), flow(samples=[3])], strict=True):
        part.to_netcdf(path, engine="scipy")
    store = import_netcdf(folder / name, files or {8: paths}, **PLAIN | options)
    assert_holds(store)


def labelled_parts(*labels):
    return [flow(samples=range(3), labels=list(labels[:3])), flow(samples=[3], labels=list(labels[3:]))]


RUNS = [part.rename(sample="run").assign(level=1.0) for part in (flow(samples=range(3)), flow(samples=[3]))]

cases(
    import_waves,
    ({"parts": RUNS}, "no dimension 'sample'; it has run, x; give sample=", {"parts": RUNS, "sample": "run"}),
    ({"engine": "zarr"}, "leave engine out"),
    (
        {"parts": labelled_parts(0.0, 1.0, 2.0, 0.0)},
        "pass relabel=True if each file counts its own samples",
        option("relabel", "pass ", parts=labelled_parts(0.0, 1.0, 2.0, 0.0)),
    ),
    ({"parts": [flow(samples=range(3)), metres(flow(samples=[3]))]}, "units of u = 'm'"),
    ({"parts": [flow(samples=range(3)), flow(16, [3])]}, "or import them into two stores"),
)


def case_a_file_that_xarray_cannot_open(folder):
    (folder / "flow.txt").write_text("")
    refused(
        import_waves, folder, {8: [folder / "flow.txt"]}, part="other formats the engine that xarray names"
    )
    flow().to_netcdf(folder / "flow.txt", engine="scipy")
    import_waves(folder, {8: [folder / "flow.txt"]}, engine="scipy")


def case_a_folder_of_files(folder):
    (folder / "empty").mkdir()
    refused(import_waves, folder, {8: folder / "empty"}, part="give the files in it")
    refused(import_waves, folder, {8: folder / "*.cdf"}, part="matches no file; expected files to import")
    import_waves(folder, {8: folder})
    import_waves(folder, {8: f"{folder}/[01].nc"}, name="pattern.zarr")


def case_a_zarr_store_without_its_engine(folder):
    flow().to_zarr(folder / "flow.zarr", zarr_format=2)
    message = refused(import_waves, folder, {8: folder / "flow.zarr"}, part="give engine='zarr'")
    import_waves(folder, {8: folder / "flow.zarr"}, **option("engine", "give ")(message))


def darcy_tensors(samples, n):
    """Two permeabilities, and a pressure that is 0 where the axes begin, of which the coarser are a part."""
    number = torch.arange(8.0)[: len(samples)] + samples[0]
    i = torch.arange(8)
    x = ((number[:, None, None] + i[:, None] // 2 + i) % 2)[:, :: 8 // n, :: 8 // n]
    y = ((1 + number)[:, None, None] * i[:, None] * i)[:, :: 8 // n, :: 8 // n]
    return {"x": x, "y": y}


def both_ends(samples, n):
    content = darcy_tensors(samples, n)
    content["y"][:, -1] = content["y"][:, :, -1] = 0
    return content


def import_pt(folder, change=None, *, layout=darcy_tensors, given=None, name="t.zarr", **options):
    """Import neuraloperator's files at two resolutions, with changes to the finer one of the first split."""
    files = {}
    for split, samples in (("train", range(3)), ("test", [3])):
        files[split] = [(n, folder / f"{split}{n}.pt") for n in (4, 8)]
        for n, file in files[split]:
            content = layout(samples, n) | ((change or {}) if (split, n) == ("train", 8) else {})
            torch.save({key: value for key, value in content.items() if value is not None}, file)
    files = files if given is None else given
    store = import_neuralop_pt(folder / name, files, progress=False, **options)
    for n in (4, 8):
        for variable, key in zip(store.variables, ("x", "y"), strict=True):
            given = [torch.load(folder / f"{split}{n}.pt")[key] for split in ("train", "test")]
            np.testing.assert_array_equal(store.read(n, variable.name), np.concatenate(given))


cases(
    import_pt,
    ({"given": {"train": [(8, "a.pt"), (8, "b.pt")]}}, "one file for each of a split's resolutions"),
    ({"change": {"y": torch.zeros(3, 9, 9)}}, "expected (3, 8, 8)"),
    ({"layout": both_ends}, "`mano_op.write_fields` with registration='node_both'"),
    (
        {"change": {"y": darcy_tensors(range(3), 8)["y"] + 1}},
        "pass levels='independent'",
        option("levels", "pass ", change={"y": darcy_tensors(range(3), 8)["y"] + 1}),
    ),
)


for name in [name for name in globals() if name.startswith("case_")]:
    CASES[name.removeprefix("case_")] = globals()[name]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("name", CASES)
def test_remedy_of_a_refusal_succeeds(name, tmp_path):
    CASES[name](tmp_path)
