"""A trained model as one file for other programs: ONNX, or a program of ``torch.export``.

===========  ==============================================================================================
of           the file takes
===========  ==============================================================================================
a `MANO`     any number of samples, on any grid that is at least as fine as the reference along each axis
             (`mano_op.layers.refinement`)
any other    one sample at a time, on the one grid that it is written for
===========  ==============================================================================================

That of a run maps physical units to physical units: the normalisation, with its logarithms, is part of it.
Before a file is written, what is in it is compared with the model.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError, check_whole
from mano_op.files import check_file, make_folder, write_file
from mano_op.grid import Grid
from mano_op.labels import variable_of
from mano_op.models.mano import MANO
from mano_op.runs import Run

# How far a file may be from the model, relative to the largest value of the output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def export_onnx(
    run: Run | nn.Module, path: str | Path, *, shape: Sequence[int] | None = None, overwrite: bool = False
) -> dict[tuple[int, ...], float]:
    """Write a trained model as an ONNX file.

    Its input is ``x``, ``(batch, in_channels, *grid)``, its output ``y``, ``(batch, out_channels, *grid)``.
    The entry ``mano_op`` of its metadata is a JSON object: the channels with their units, and which grids
    the file is for.

    Parameters
    ----------
    run : Run or Module
        A model alone maps what it was trained to map, which is normalised fields.
    path : path
    shape : sequence of int, optional
        For models other than `MANO` the grid that the file will be for.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    dict
        For each shape of an input that onnxruntime was given, the largest difference of its output from the
        model's, over the largest value of that.

    Raises
    ------
    InputError
        If a package is missing; if the file exists or cannot be written; if the model has no reference, or
        cannot be exported; or if the file does not compute what the model does. No file is written then.

    Notes
    -----
    A file does not compare sizes. On a grid coarser than the reference onnxruntime stops at a ``Gather``
    whose "indices element out of data bounds": the last point of the reference is not there.

    Examples
    --------
    An ONNX file in another program, `export_program` shows how to write one::

        session = onnxruntime.InferenceSession("mano.onnx")
        (y,) = session.run(None, {"x": x})
    """
    file = check_file(path, overwrite=overwrite)
    _check_installed()
    task = _task(run, shape)
    if any(parameter.is_complex() for parameter in task.model.parameters()):
        raise InputError(
            f"{task.name} has complex parameters, for which ONNX has no type: write it as a program of "
            "torch.export, a .pt2 file, or export a MANO"
        )
    program = task.program()
    with _refused(f"{task.name} cannot be turned into ONNX"):
        onnx = _turned_into_onnx(program, task.sizes)
        onnx.model.metadata_props["mano_op"] = json.dumps(task.metadata)
        content: bytes = onnx.model_proto.SerializeToString()
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return _write(file, content, task, lambda x: torch.as_tensor(session.run(None, {"x": x.numpy()})[0]))


def export_program(
    run: Run | nn.Module, path: str | Path, *, shape: Sequence[int] | None = None, overwrite: bool = False
) -> dict[tuple[int, ...], float]:
    """Write a trained model as a program of ``torch.export``, which ``torch.export.load`` reads.

    The metadata is the file ``mano_op.json`` in it. Parameters, result and errors are those of `export_onnx`.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Conv1d(1, 1, 3, padding=1)  # or a MANO, without shape
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     errors = export_program(model, f"{folder}/model.pt2", shape=(25,))
    ...     program = torch.export.load(f"{folder}/model.pt2").module()
    >>> max(errors.values()) < 1e-5, program(torch.randn(1, 1, 25)).shape
    (True, torch.Size([1, 1, 25]))
    """
    file = check_file(path, overwrite=overwrite)
    task = _task(run, shape)
    buffer = io.BytesIO()
    torch.export.save(task.program(), buffer, extra_files={"mano_op.json": json.dumps(task.metadata)})
    content = buffer.getvalue()
    return _write(file, content, task, torch.export.load(io.BytesIO(content)).module())


def _write(
    file: Path, content: bytes, task: _Task, compute: Callable[[Tensor], Tensor]
) -> dict[tuple[int, ...], float]:
    """Write a file that computes what the model does, and return how far it is from that."""
    errors = task.errors(compute)
    make_folder(file.parent)
    write_file(file, content)
    return errors


@dataclass(frozen=True)
class _Task:
    """A function to export, and what to compare it with.

    `sizes` has the names and least sizes of the input's dimensions that may have any. No size of the last
    input is 1, that of a channel or another axis, or the reference's: torch may take one that is for a
    constant.
    """

    name: str
    model: nn.Module
    sizes: dict[int, Any]
    metadata: dict[str, Any]
    inputs: list[Tensor]

    def program(self) -> ExportedProgram:
        """Return the function, traced."""
        with torch.no_grad(), _refused(f"{self.name} cannot be traced by torch.export"):
            self.model(self.inputs[-1])  # some models make what they keep in their first call
            return torch.export.export(self.model, (self.inputs[-1],), dynamic_shapes=(self.sizes,))

    def errors(self, compute: Callable[[Tensor], Tensor]) -> dict[tuple[int, ...], float]:
        """Return how far a function is from the model on each of the inputs, if not too far."""
        errors = {}
        for x in self.inputs:
            with torch.inference_mode():
                expected, computed = self.model(x), compute(x)
            error = float((computed - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
            if not error <= TOLERANCE[x.dtype]:
                raise InputError(
                    f"the file of {self.name} would differ from the model by {error:.1e} on an input of "
                    f"shape {tuple(x.shape)}, expected at most {TOLERANCE[x.dtype]:.0e}, so it was not "
                    "written: use the model in Python, and report this with the version of torch"
                )
            errors[tuple(x.shape)] = error
        return errors


class _InUnits(nn.Module):
    """A model between the two halves of its processor, as one function of a tensor in physical units."""

    def __init__(self, model: nn.Module, processor: FieldProcessor) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    def forward(self, x: Tensor) -> Tensor:
        """Return the output in physical units."""
        out: Tensor = self.model(self.processor.preprocess({"x": x})["x"])
        return self.processor.postprocess(out, {})[0]


def _task(run: Run | nn.Module, shape: Sequence[int] | None) -> _Task:
    model: Any = run.model if isinstance(run, Run) else run
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}, expected a Run or a model: see mano_op.load_run")
    # A copy on the CPU: the caller's stays in its mode and on its device.
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in TOLERANCE:
        raise InputError(f"the parameters are {dtype}, expected float32 or float64: use model.float()")
    name, sizes = type(model).__name__, {}
    grids = _grids(model, shape)
    if isinstance(model, MANO):
        axes = zip(Grid.uniform(grids[0]).names, grids[0], strict=True)
        sizes = {0: Dim("batch", min=1)}
        sizes |= {dim: Dim(f"n_{axis}", min=least) for dim, (axis, least) in enumerate(axes, start=2)}
    metadata = _metadata(run, model, grids[0])
    inputs = [
        torch.randn(n, metadata["in_channels"], *grid, generator=torch.Generator().manual_seed(n)).to(dtype)
        for n, grid in enumerate(grids, start=1)
    ]
    if isinstance(run, Run):
        processor = copy.deepcopy(run.processor).to("cpu").eval()
        statistics = processor.to_dict()["inputs"]
        in_units = FieldProcessor(statistics, statistics).eval()
        inputs = [in_units.postprocess(x, {})[0].to(x.dtype) for x in inputs]
        model = _InUnits(model, processor)
    return _Task(name, model, sizes, metadata, inputs)


def _grids(model: nn.Module, shape: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Return the grids to compare a file of a model on, the least first."""
    name = type(model).__name__
    if isinstance(model, MANO):
        if shape is not None:
            raise InputError(
                f"shape={tuple(shape)}, but the file of a MANO is for all sizes from its reference on: leave "
                "it out"
            )
        least = model.reference_shape
        if least is None:
            raise InputError(
                "this MANO has no reference grid yet, to which its levels would belong: train it, or give it "
                "reference_shape"
            )
        distinct: list[int] = []
        for n in least:
            distinct.append(next(m for m in count(n + 3) if m not in (*distinct, *least)))
        return [least, (2 * least[0], *least[1:]), tuple(distinct)]
    n_dim = getattr(model, "n_dim", None if shape is None else len(shape))
    if shape is None or len(shape) != n_dim:
        stated = "no shape" if shape is None else f"shape={tuple(shape)}, expected {n_dim} sizes for {name}"
        raise InputError(
            f"{stated}: the file of a {name} is for one grid only, give the points along each axis, 64x64 or "
            "(64, 64), say"
        )
    check_whole(**{f"shape[{i}]": n for i, n in enumerate(shape)})
    return [tuple(shape)]


def _metadata(run: Run | nn.Module, model: nn.Module, grid: tuple[int, ...]) -> dict[str, Any]:
    """Return what a reader of the file has to know to use it."""
    name = type(model).__name__
    metadata: dict[str, Any] = {
        "mano_op": version("mano_op"),
        "model": name,
        "axes": list(Grid.uniform(grid).names),
        "values": "physical" if isinstance(run, Run) else "normalised",
    }
    for role in ("in", "out"):
        if isinstance(run, Run):
            units, labels = run.training.get("units", {}), getattr(run.processor, f"{role}puts")
            channels = [{"name": label, "units": units.get(variable_of(label)) or ""} for label in labels]
            metadata |= {f"{role}puts": channels, f"{role}_channels": len(labels)}
        elif not hasattr(model, f"{role}_channels"):
            raise InputError(f"the {name} does not say its {role}_channels: give a Run, whose processor does")
        else:
            metadata[f"{role}_channels"] = getattr(model, f"{role}_channels")
    if isinstance(model, MANO):
        return metadata | {
            "reference_shape": list(grid),
            "registration": model.registration,
            "periodic": list(model.periodic),
            "grids": "at least reference_shape along each axis",
        }
    return metadata | {"shape": list(grid), "grids": "of this shape, one sample at a time"}


def _turned_into_onnx(program: ExportedProgram, sizes: dict[int, Any]) -> Any:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of torchvision, which nobody asked for
    try:
        with warnings.catch_warnings():
            # torch's own copy of an exported program asks pytrees in a way that torch has deprecated.
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            return torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=(sizes,),
            )
    finally:
        log.setLevel(level)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise what torch cannot do as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torch has no common class for what it cannot trace
        reason = error.__cause__ or error
        text = re.sub(r"For more information, run with TORCH_LOGS=\S+", "", str(reason))
        raise InputError(
            f"{what} ({type(reason).__name__}: {' '.join(text.split())[:500]}): use the model in Python"
        ) from error


def _check_installed() -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"to write ONNX takes onnx, onnxscript and onnxruntime, and {error.name} is not installed: "
            "pip install 'mano_op[onnx]'"
        ) from error
