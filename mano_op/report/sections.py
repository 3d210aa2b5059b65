"""The parts of a report: what is shown of errors, costs and training, and how to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from mano_op.data.store import FieldStore
from mano_op.machine import machine
from mano_op.report.figures import (
    cost_and_error,
    error_by_resolution,
    error_by_step,
    error_distributions,
    training_history,
    transfer_matrix,
)
from mano_op.report.page import definitions, figure, heading, html_table, paragraph, points
from mano_op.report.style import data_uri
from mano_op.runs import Run
from mano_op.transfer.entries import Entry
from mano_op.transfer.rollout import steps_of
from mano_op.transfer.series import flat, series_of
from mano_op.transfer.tables import header, metric_header, metric_name, metric_rows, notes, table_rows

_DPU = (
    "DPU (down, predict, up) restricts the input to the grid that a model was trained on, predicts there and "
    "interpolates the prediction back: it needs no transfer, so direct inference is worth something only "
    "where it has the smaller error."
)
_TERMS = {
    "direct": "the model, given the input on the grid itself.",
    "DPU": "down, predict, up: the input restricted to the model's training grid, the prediction there, "
    "interpolated back. Several ways of restricting are tried: the values at the shared points (injection) "
    "or, where the grids do not nest, those at the nearest points (nearest); "
    "the means over cells (mean); interpolated values (interpolation). The one with the smallest error is "
    "shown. A claim of transfer has to beat it, and the mean field.",
    "floor": "the true output at the points of the training grid, interpolated likewise: what DPU makes of a "
    "perfect coarse prediction.",
    "mean field": "the mean over the training split, everywhere: what knowing nothing of the input gives.",
    "skill": "1 - the direct error over that of the best DPU: the part of the error that direct inference "
    "saves.",
    "growth": "the direct error over the direct error at the training resolution. A model that was trained "
    "on several has the one that most of its samples had for this, and for DPU.",
}


_UNKNOWN = "not recorded"


def findings(judged: xr.Dataset, store: FieldStore) -> list[str]:
    """What was judged, and the sentences that its intervals allow."""
    judged = flat(judged)
    about = judged.attrs
    pairs = zip(judged["sentence"].values.ravel(), judged["verdict"].values.ravel(), strict=True)
    return [
        paragraph(
            f"{', '.join(judged['model'].values)} on {store.attrs['title'] or store.name}: "
            f"{about['samples']} samples of the split {about['split']!r} at "
            f"{', '.join(judged['resolution'].values)}. Errors are {metric_name(about['metric'])} "
            "errors in %, means over the samples with 95 % intervals."
        ),
        heading("What the numbers allow to say"),
        points(pairs),
    ]


def errors(results: xr.Dataset, judged: xr.Dataset) -> list[str]:
    """The table, its notes, and for each variable the errors by resolution and their distributions."""
    parts = [
        heading("Errors"),
        paragraph(_DPU),
        html_table(header(judged), table_rows(judged), kind="numbers"),
        *(paragraph(note, kind="note") for note in notes(judged)),
        heading("By other metrics", 3),
        paragraph(
            "Means over the samples in %: of direct inference, and after the stroke of the best DPU by it."
        ),
        html_table(metric_header(judged), metric_rows(judged), kind="numbers"),
    ]
    named = metric_name(judged.attrs["metric"])
    for variable in judged["variable"].values.tolist():
        parts += [
            figure(
                data_uri(transfer_matrix(judged, variable), "svg"),
                f"Mean {named} error of {variable} in %, by where a model was trained and where it was "
                "judged; in brackets that of its best DPU.",
            ),
            figure(
                data_uri(error_by_resolution(judged, variable), "svg"),
                f"Mean {named} error of {variable}. Bands are 95 % intervals. Direct inference is worth "
                "its cost where the full line lies below the broken one of its colour and the mean field.",
            ),
            figure(
                data_uri(error_distributions(results, judged, variable), "svg"),
                f"How the error of {variable} is spread over the samples: the share that has no larger one. "
                "Where a curve ends below 100 %, the other errors are not finite.",
            ),
        ]
    return parts


def rollout(judged: xr.Dataset) -> list[str]:
    """For each variable of a rollout its errors by step; nothing where nothing is stepped."""
    steps = steps_of(judged)
    if not steps:
        return []
    named = metric_name(judged.attrs["metric"])
    return [
        heading("Rollout"),
        paragraph(
            "Each step but the first starts from the predictions before it. Sentences, tables and pictures "
            "are of the first, the middle and the last step; results.csv and results.nc have all."
        ),
        *(
            figure(
                data_uri(error_by_step(judged, variable), "svg"),
                f"Mean {named} error of {variable} by step. Bands are 95 % intervals.",
            )
            for variable in steps
        ),
    ]


def costs(judged: xr.Dataset) -> list[str]:
    """What a prediction costs, as a picture and as a table."""
    judged = flat(judged)
    parts = [heading("Cost")]
    if (judged["flops"].values > 0).all():  # otherwise nothing countable, and no place on the axis
        parts += [
            figure(
                data_uri(cost_and_error(judged, variable), "svg"),
                f"Cost of a prediction against the error of {variable}. Lines follow direct inference "
                "through the resolutions; DPU costs what a prediction on the training grid costs.",
            )
            for variable in judged["variable"].values.tolist()
        ]
    rows = []
    for model in judged["model"].values.tolist():
        for key in judged["resolution"].values.tolist():
            one = judged.sel(model=model, resolution=key)
            flops, seconds, peak = (
                one[name].item() for name in ("flops", "seconds_per_sample", "peak_bytes")
            )
            rows.append([model, key, f"{flops / 1e6:.4g}", f"{1e3 * seconds:.3g}", f"{peak / 2**20:.3g}"])
    head = [
        "model", "resolution", "MFLOP for a sample", "ms for a sample, indicative", "MiB at most, a sample",
    ]  # fmt: skip
    return [*parts, html_table(head, rows)]


def training(runs: Mapping[str, Run], entries: Sequence[Entry], judged: xr.Dataset) -> list[str]:
    """The budget of each run: what it is, what it was trained on, for how long; histories of `runs` alone.

    Parameters
    ----------
    runs : mapping of str to Run
        One of each series, by its label.
    entries : sequence of Entry
        All runs.
    judged : Dataset
    """
    properties: dict[str, list[str]] = {}
    seeded = len(entries) > len(runs)
    columns = {}
    for one in series_of(judged):
        for entry in entries:
            if (entry.model, entry.train_resolution) == (one.model, one.train_resolution):
                columns[one.label + (f", seed {entry.seed}" if seeded else "")] = entry.run, one.of(judged)
    for i, (run, cost) in enumerate(columns.values()):
        facts = {
            "architecture": run.arch,
            "options": ", ".join(f"{name}={value}" for name, value in run.options.items()),
            "parameters": f"{run.n_parameters:,}",
            "MFLOP for a sample": f"{cost['training_flops'].item() / 1e6:.4g}",
            **{
                name.replace("_", " "): in_words(value)
                for name, value in run.training.items()
                if name != "machine"
            },
            **_trained_on(run.training.get("machine", {})),
        }
        if run.history:
            facts["seconds of training"] = f"{sum(entry['seconds'] for entry in run.history):.3g}"
            facts["last training loss"] = f"{run.history[-1]['training_error']:.3g} ({_loss(run)})"
        for name, fact in facts.items():
            properties.setdefault(name, [""] * len(columns))[i] = fact
    parts = [
        heading("What was trained on what"),
        html_table(["", *columns], [[name, *facts] for name, facts in properties.items()]),
    ]
    histories = {model: run.history for model, run in runs.items()}
    if any(histories.values()):
        losses = ", ".join(f"{model} the {_loss(run)}" for model, run in runs.items() if run.history)
        parts.append(
            figure(
                data_uri(training_history(histories), "svg"),
                f"Training loss, by epoch and by seconds: of {losses}, over the training samples as the "
                "model changed. It is not the error of the table, which is of fields in physical units and "
                f"of the split {judged.attrs['split']!r}: the two are not to be compared.",
            )
        )
    return parts


def _loss(run: Run) -> str:
    """What a history has the values of."""
    loss = run.training.get("loss")
    return f"relative {f'{loss} '.upper() if loss else ''}error of the normalised field"


def _trained_on(found: Mapping[str, Any]) -> dict[str, str]:
    """Device, processor, threads and versions of a training, as `mano_op.machine.machine` says them."""
    software = {name: found[name] for name in ("python", "platform", "versions") if name in found}
    return {
        "trained on device": str(found.get("device", _UNKNOWN)),
        "trained on processor": str(found.get("processor", _UNKNOWN)),
        "training threads": str(found.get("threads", _UNKNOWN)),
        "training software": in_words(software) or _UNKNOWN,
    }


def data(store: FieldStore) -> list[str]:
    """What the fields are, and what they were judged on."""
    rows = [
        [key, str(grid), in_words({split: store.splits[split] for split in store.layout.held[key]})]
        for key, grid in store.grids.items()
    ]
    facts = {
        "store": f"{store.attrs['title']} ({store.name})",
        "fields": f"{', '.join(store.inputs)} to {', '.join(store.outputs)}",
        "boundary conditions": in_words(store.layout.boundary_conditions),
        "levels": store.layout.levels,
        "made by": in_words(store.attrs.get("provenance", {})),
        "judged on": in_words(machine()),
    }
    return [html_table(["level", "grid", "samples"], rows), definitions(facts)]


def in_words(value: Any) -> str:
    """Nested dictionaries and lists on one line.

    Examples
    --------
    >>> in_words({"problem": "darcy", "files": ["a.pt", "b.pt"], "versions": {"numpy": "2.4"}})
    'problem darcy, files (a.pt, b.pt), versions (numpy 2.4)'
    """
    if isinstance(value, Mapping):
        nested = (
            f"({in_words(one)})" if isinstance(one, Mapping | list) else str(one) for one in value.values()
        )
        return ", ".join(f"{key} {one}" for key, one in zip(value, nested, strict=True) if one)
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return str(value)


def how_to_read(judged: xr.Dataset) -> list[str]:
    """The terms of the table, and what stands behind the numbers."""
    known = in_words(json.loads(judged.attrs["boundary"])) or "none"
    return [
        heading("How to read this"),
        definitions(_TERMS),
        paragraph(
            "The error of a sample is a norm of prediction minus truth over that of the truth, in physical "
            "units. Norms are integrals by the grid's quadrature; only 'by points' counts every point once, "
            "as neuraloperator's LpLoss does. VRMSE is relative to the spread of the truth about its mean. "
            "Near boundaries is within two spacings of the training grid. Below and above the training "
            "Nyquist are the parts of the error that the training grid can and cannot carry: Fourier modes "
            "along axes that wrap, cosines along others. Mismatch is how far the direct prediction, taken "
            "to the training grid, is from the prediction there; it needs no truth."
        ),
        paragraph(
            f"Intervals are a {judged.attrs['interval']}. They tell these models apart on such samples; "
            "they do not say how a model trained from another seed would do."
        ),
        paragraph(
            "Interpolation copies shared points, uses the trigonometric interpolant along periodic axes, and "
            f"elsewhere the cubic spline with the known values at the ends of axes ({known})."
        ),
        paragraph(
            "Operations are those of matrix products, convolutions and Fourier transforms in one forward "
            "pass. Seconds are the best of a few batches on the machine above, whatever else it was doing."
        ),
    ]
