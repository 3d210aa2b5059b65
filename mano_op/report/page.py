"""The report of a resolution transfer: one HTML page that needs nothing else, and its numbers beside it.

The prose of the page is in ``templates/report.html.j2``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from mano_op.cost import count_parameters
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.labels import variable_of
from mano_op.machine import machine
from mano_op.report import figures
from mano_op.report.folder import FILES, check_report_folder
from mano_op.report.panels import beside_dpu, best_median_worst, sample_panels
from mano_op.report.style import data_uri
from mano_op.runs import Run
from mano_op.transfer.evidence import Evidence
from mano_op.transfer.io import save_results
from mano_op.transfer.rollout import shown_steps, steps_of
from mano_op.transfer.runs import PLUS, JudgedRun
from mano_op.transfer.tables import (
    check_summary,
    error_rows,
    metric_name,
    metric_rows,
    notes,
    to_csv,
    to_json,
)

_FOR_SPECTRA = 50
_UNKNOWN = "not known"


def write_report(
    folder: str | Path,
    results: xr.Dataset,
    judged: xr.Dataset,
    evidence: Evidence,
    *,
    title: str,
    overwrite: bool = False,
) -> Path:
    """Write ``report.html`` and the numbers it shows: ``results.csv``, ``results.json``, ``results.nc``.

    The page holds its pictures and loads nothing from a network. The CSV file has a row for every error, the
    JSON file has the summary, and the NetCDF file the labelled data set `results`.

    Parameters
    ----------
    folder : path
        Made if need be.
    results, judged, evidence
        From `mano_op.transfer.evaluate_transfer`, from `mano_op.transfer.summary` of the results, and as
        `evaluate_transfer` filled it.
    title : str
    overwrite : bool
        Whether a report in the folder may be replaced.

    Returns
    -------
    Path
        Of the page, which is written last.

    Raises
    ------
    InputError
        Before anything is written, if the folder has a report, or the parts are not of one evaluation.
    """
    folder = Path(folder)
    check_report_folder(folder, overwrite=overwrite)
    _check_parts(results, judged, evidence)
    content = page(title, results, judged, evidence, list(FILES[1:]))
    folder.mkdir(parents=True, exist_ok=True)
    save_results(results, folder / "results.nc", overwrite=True)
    to_csv(results, folder / "results.csv")
    to_json(judged, folder / "results.json")
    write_file(folder / "report.html", content)
    return folder / "report.html"


def _check_parts(results: xr.Dataset, judged: xr.Dataset, evidence: Evidence) -> None:
    """Refuse results, a summary and evidence of different evaluations."""
    check_summary(judged, "write_report")
    keys, runs = results["resolution"].values.tolist(), [run.coordinates for run in evidence.runs]
    labels, judged_labels = (data["label"].values.tolist() for data in (results, judged))
    if (
        list(results.get_index("run")) != runs
        or keys[-1] != list(evidence.fields)[-1]
        or not set(judged_labels) <= set(labels)
        or keys != judged["resolution"].values.tolist()
    ):
        raise InputError(
            f"results of {', '.join(labels)} at {', '.join(keys)}, a summary of {', '.join(judged_labels)} "
            f"at {', '.join(judged['resolution'].values)} and evidence of "
            f"{', '.join(run.name for run in evidence.runs) or 'nothing'}: give those of one evaluation, "
            "evaluate_transfer(..., evidence=evidence), and summary(results)"
        )


def page(title: str, results: xr.Dataset, judged: xr.Dataset, evidence: Evidence, files: list[str]) -> str:
    """Render the page: text is escaped, pictures are part of it, and nothing is loaded from elsewhere.

    `files` are the names of the files beside the page.
    """
    steps = steps_of(judged["variable"].values.tolist(), judged.attrs["rollout"])
    by_step = {variable: _svg(figures.error_by_step(judged, variable)) for variable in steps}
    results, judged = shown_steps(results), shown_steps(judged)
    fields = {key: beside_dpu(kept, judged, key) for key, kept in evidence.fields.items()}
    resolutions, variables = (judged[dim].values.tolist() for dim in ("resolution", "variable"))
    finest, store = resolutions[-1], evidence.store
    n_kept, some = fields[finest].sizes["sample"], fields[finest].isel(sample=slice(_FOR_SPECTRA))
    homes = zip(judged["label"].values.tolist(), judged["home"].values.tolist(), strict=True)
    trained = {label: store.grids[home] for label, home in homes}
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("mano_op"), autoescape=True, **options)
    environment.filters["unbroken"] = unbroken
    return environment.get_template("report.html.j2").render(
        title=title,
        about=judged.attrs,
        metric=metric_name(judged.attrs["metric"]),
        store=store,
        labels=judged["label"].values.tolist(),
        resolutions=resolutions,
        findings=list(zip(judged["sentence"].values.ravel(), judged["verdict"].values.ravel(), strict=True)),
        errors=error_rows(judged),
        metrics=metric_rows(judged),
        notes=notes(judged),
        pictures={variable: _pictures(results, judged, variable) for variable in variables},
        steps=by_step,
        finest=finest,
        spectra={v: _svg(figures.spectra(some, store.grids[finest], v, trained)) for v in variables},
        n_spectra=min(_FOR_SPECTRA, n_kept),
        n_kept=n_kept,
        samples=list(_samples(results, judged, fields, store)),
        costs=_costs(judged),
        runs=_runs(results, evidence.runs),
        history=_history(judged, evidence.runs),
        grids=[
            [key, str(grid), in_words({split: store.splits[split] for split in store.layout.held[key]})]
            for key, grid in store.grids.items()
        ],
        data={
            "store": f"{store.attrs.get('title', '')} ({store.name})".lstrip(),
            "fields": f"{', '.join(store.inputs)} to {', '.join(store.outputs)}",
            "boundary conditions": in_words(store.layout.boundary_conditions),
            "levels": store.layout.levels,
            "made by": in_words(store.attrs.get("provenance", {})),
            "judged on": in_words(machine()),
        },
        known=in_words(json.loads(judged.attrs["boundary"])) or "none",
        files=files,
    )


def unbroken(text: str) -> Markup:
    """Escape a text, and keep its intervals, as ``[0.9, 1.1]``, on their lines.

    Examples
    --------
    >>> str(unbroken("a < b: 1.0 [0.9, 1.1]"))
    'a &lt; b: 1.0 [0.9,&nbsp;1.1]'
    """
    return Markup(re.sub(r"\[([-+.e\d]+), ([-+.e\d]+)\]", r"[\1,&nbsp;\2]", str(escape(text))))


def _svg(figure: Figure) -> str:
    return data_uri(figure, "svg")


def _pictures(results: xr.Dataset, judged: xr.Dataset, variable: str) -> dict[str, str]:
    countable = bool((judged["flops"] > 0).all("resolution").any())
    return {
        "matrix": _svg(figures.transfer_matrix(judged, variable)),
        "by_resolution": _svg(figures.error_by_resolution(judged, variable)),
        "distributions": _svg(figures.error_distributions(results, judged, variable)),
        "cost": _svg(figures.cost_and_error(judged, variable)) if countable else "",
    }


def _samples(
    results: xr.Dataset, judged: xr.Dataset, fields: Mapping[str, xr.Dataset], store: FieldStore
) -> Iterator[dict[str, Any]]:
    """For each resolution and variable a good, a middling and a bad sample."""
    units = {
        variable.name: "" if variable.units == "1" else f" [{variable.units}]" for variable in store.variables
    }
    runs = list(zip(judged["label"].values, judged["train_resolution"].values, strict=True))
    direct = results["error"].sel(predictor="direct", metric=judged.attrs["metric"])
    direct = direct.groupby("label").mean(skipna=False).transpose("label", ..., "sample")  # over the seeds
    for key in judged["resolution"].values.tolist():
        if key not in fields:
            continue
        kept = fields[key]
        errors = direct.isel(sample=slice(kept.sizes["sample"]))
        channels = [*kept["input_variable"].values.tolist(), *kept["variable"].values.tolist()]
        names = {channel: channel + units[variable_of(channel)] for channel in channels}
        for variable in judged["variable"].values.tolist():
            rows = best_median_worst(errors.sel(resolution=key, variable=variable).values)
            captions = [f"{which}, no. {kept['sample'].values[row]}" for which, row in rows.items()]
            shown = kept.isel(sample=list(rows.values()))
            yield {
                "variable": variable,
                "key": key,
                "shape": store.grids[key].shape,
                "trained": [label for label, trained in runs if key in trained.split(PLUS)],
                "picture": data_uri(sample_panels(shown, store.grids[key], variable, captions, names), "png"),
            }


def _costs(judged: xr.Dataset) -> list[list[str]]:
    """Rows of model, resolution, MFLOP, milliseconds and MiB for a sample."""
    costs = judged[["flops", "seconds_per_sample", "peak_bytes"]].reset_index("run")
    return [
        [
            row.label,
            row.resolution,
            _megaflops(row.flops),
            f"{1e3 * row.seconds_per_sample:.3g}",
            f"{row.peak_bytes / 2**20:.3g}",
        ]
        for row in costs.to_dataframe(dim_order=["run", "resolution"]).reset_index().itertuples()
    ]


def _megaflops(flops: float) -> str:
    return f"{flops / 1e6:.4g}" if flops else _UNKNOWN


def _runs(results: xr.Dataset, runs: list[JudgedRun]) -> list[list[str]]:
    """A table with a column for each run: what it is, what it was trained on, for how long."""
    labels, flops = (results[name].values.tolist() for name in ("label", "training_flops"))
    if len(set(labels)) < len(labels):
        labels = [f"{label}, seed {run.seed}" for label, run in zip(labels, runs, strict=True)]
    facts = [_facts(*run) for run in zip(runs, flops, strict=True)]
    names = dict.fromkeys(name for column in facts for name in column)
    return [["", *labels], *([name, *(column.get(name, "") for column in facts)] for name in names)]


def _facts(run: JudgedRun, flops: float) -> dict[str, str]:
    parameters = count_parameters(run.network)
    counted = {
        "parameters": f"{parameters:,}" if parameters else _UNKNOWN,
        "MFLOP for a sample": _megaflops(flops),
    }
    if not isinstance(run.source, Run):
        known = {"resolution": run.train_resolution, "seed": str(run.seed)}
        return {"architecture": "a function, trained elsewhere", **counted, **known}
    training, history = run.source.training, run.source.history
    hardware = training.get("machine", {})
    software = {name: hardware[name] for name in ("python", "platform", "versions") if name in hardware}
    facts = {
        "architecture": run.source.arch,
        "options": ", ".join(f"{name}={value}" for name, value in run.source.options.items()),
        **counted,
        **{name.replace("_", " "): in_words(value) for name, value in training.items() if name != "machine"},
        "trained on device": str(hardware.get("device", _UNKNOWN)),
        "trained on processor": str(hardware.get("processor", _UNKNOWN)),
        "training threads": str(hardware.get("threads", _UNKNOWN)),
        "training software": in_words(software) or _UNKNOWN,
    }
    if history:
        facts["seconds of training"] = f"{sum(entry['seconds'] for entry in history):.3g}"
        facts["last training loss"] = f"{history[-1]['training_error']:.3g} ({_loss(run.source)})"
    return facts


def _history(judged: xr.Dataset, runs: list[JudgedRun]) -> dict[str, Any]:
    """The picture of the training losses of the first seeds, and what the losses are; empty without any."""
    by_pair = {run.coordinates[:2]: run.source for run in reversed(runs)}
    pairs = dict(zip(judged["label"].values, judged["run"].values, strict=True))
    trained = {label: run for label, pair in pairs.items() if isinstance(run := by_pair[pair], Run)}
    losses = {label: _loss(run) for label, run in trained.items() if run.history}
    if not losses:
        return {}
    histories = {label: trained[label].history if label in trained else [] for label in pairs}
    return {"picture": _svg(figures.training_history(histories)), "losses": losses}


def _loss(run: Run) -> str:
    loss = run.training.get("loss")
    return f"relative {f'{loss} '.upper() if loss else ''}error of the normalised field"


def in_words(value: Any) -> str:
    """Format nested dictionaries and lists on one line.

    Examples
    --------
    >>> in_words({"problem": "darcy", "files": ["a.pt", "b.pt"], "versions": {"numpy": "2.4"}})
    'problem darcy, files (a.pt, b.pt), versions (numpy 2.4)'
    """
    if isinstance(value, Mapping):
        nested = (f"({in_words(v)})" if isinstance(v, Mapping | list) else str(v) for v in value.values())
        return ", ".join(f"{key} {text}" for key, text in zip(value, nested, strict=True) if text)
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return str(value)
