"""A trained model as one file for other programs: ONNX, or a program of ``torch.export``.

The file of a run maps physical units to physical units: the normalisation, with its logarithms, is part of it. That of a
`MANO` takes any number of samples on any grid at least as fine as the reference (`mano_op.models.traceable`); that of
another model any number of samples on the one grid it is traced with.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError
from mano_op.files import check_folder, write_file
from mano_op.grid import Grid
from mano_op.models.mano import MANO
from mano_op.models.traceable import TraceableMANO
from mano_op.runs import Run

# How far a file may be from the model, relative to the largest value of its output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far what it computes is from the model.

    Attributes
    ----------
    path : Path
    errors : dict
        For each shape of an input that it was run on, the largest difference from the model's output over the
        largest value of that.
    unchecked : str
        Why it was not run, if it was not; else empty.
    """

    path: Path
    errors: dict[tuple[int, ...], float] = field(default_factory=dict)
    unchecked: str = ""

    @property
    def error(self) -> float:
        """The largest of the errors; nan if the file was not run."""
        return max(self.errors.values(), default=math.nan)

    def __str__(self) -> str:
        if self.unchecked:
            return f"{self.path}: not compared with the model: {self.unchecked}"
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.errors)
        return f"{self.path}: differs from the model by {self.error:.1e} at most, relative, on {shapes}"


class _InUnits(nn.Module):
    """A model between the two halves of its processor, as one function of a tensor."""

    def __init__(self, model: nn.Module, processor: FieldProcessor) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(self.processor.preprocess({"x": x})["x"])
        return self.processor.postprocess(out, {})[0]


def export_onnx(
    run: Run | nn.Module, path: str | Path, *, shape: Sequence[int] | None = None, overwrite: bool = False
) -> Exported:
    """Write a trained model as an ONNX file.

    Its input is ``x``, ``(batch, in_channels, *grid)``, its output ``y``, ``(batch, out_channels, *grid)``; the file's
    metadata names the channels with their units, and says which grids it is for, each entry as JSON.

    Parameters
    ----------
    run : Run or Module
        Of a run the normalisation is in the file too. A model alone maps what it was trained to map, which is
        normalised fields.
    path : path
    shape : sequence of int, optional
        Of models other than `MANO` the one grid that the file will be for.
    overwrite : bool
        Whether a file that is there may be replaced.

    Returns
    -------
    Exported
        The file was run with onnxruntime on three inputs, if that is installed.

    Raises
    ------
    InputError
        If onnx or onnxscript is not installed, the file is there already or cannot be written, the model has no
        reference, torch cannot trace the model or turn it into ONNX, or the result is not what the model computes.
        No file is written then.

    Notes
    -----
    A file does not compare sizes. On a grid coarser than the reference, onnxruntime stops at a ``Gather`` whose
    "indices element out of data bounds": the last point of the reference is not there.
    """
    place = _check_path(path, overwrite)
    _check_installed()
    traced = _traced(run, shape)
    program = _refused_as(
        "cannot be turned into ONNX", lambda: _onnx_program(traced.program, traced.dynamic), traced.name
    )
    for entry, value in traced.metadata.items():
        program.model.metadata_props[entry] = json.dumps(value)
    content: bytes = program.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ModuleNotFoundError:
        write_file(place, content)
        return Exported(place, unchecked="onnxruntime is not installed; pip install 'mano_op[onnx]'")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def compute(x: Tensor) -> Tensor:
        return torch.as_tensor(session.run(None, {"x": x.numpy()})[0])

    errors = _errors(traced, compute)
    write_file(place, content)
    return Exported(place, errors)


def export_program(
    run: Run | nn.Module, path: str | Path, *, shape: Sequence[int] | None = None, overwrite: bool = False
) -> Exported:
    """Write a trained model as a program of ``torch.export``, which ``torch.export.load`` reads.

    The arguments and the result are those of `export_onnx`; the metadata is one JSON object, ``mano_op.json`` among the
    file's ``extra_files``.

    Raises
    ------
    InputError
        If the file is there already or cannot be written, the model has no reference, torch cannot trace the model, or
        the result is not what the model computes. No file is written then.
    """
    place = _check_path(path, overwrite)
    traced = _traced(run, shape)
    buffer = io.BytesIO()
    torch.export.save(traced.program, buffer, extra_files={"mano_op.json": json.dumps(traced.metadata)})
    content = buffer.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()
    errors = _errors(traced, module)
    write_file(place, content)
    return Exported(place, errors)


@dataclass(frozen=True)
class _Traced:
    """A traced model, the function that it has to be, and inputs to compare the two on."""

    name: str
    program: ExportedProgram
    dynamic: dict[int, Any]
    metadata: dict[str, Any]
    model: nn.Module
    inputs: list[Tensor]


def _traced(run: Run | nn.Module, shape: Sequence[int] | None) -> _Traced:
    model = run.model if isinstance(run, Run) else run
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}, expected a Run or a model: see mano_op.load_run")
    name = type(model).__name__
    # A copy on the CPU, of which nothing learns: the caller's stays in its mode and on its device.
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in TOLERANCE:
        raise InputError(f"the parameters are {dtype}, expected float32 or float64: use model.float()")
    grids = _grids(model, shape)
    metadata = _metadata(run, name, model, grids[0])
    form: nn.Module = TraceableMANO(model) if isinstance(model, MANO) else model
    in_channels = metadata["in_channels"]
    inputs = [
        torch.randn(n, in_channels, *grid, dtype=dtype, generator=torch.Generator().manual_seed(n))
        for n, grid in enumerate(grids, start=1)
    ]
    if isinstance(run, Run):
        processor = copy.deepcopy(run.processor).to("cpu").eval()
        inputs = [_physical(processor, x) for x in inputs]
        form, model = _InUnits(form, processor), _InUnits(model, processor)
    dynamic: dict[int, Any] = {0: Dim("batch", min=1)}
    if isinstance(form, TraceableMANO) or isinstance(getattr(form, "model", None), TraceableMANO):
        for dim, (axis, least) in enumerate(zip(metadata["axes"], grids[0], strict=True), start=2):
            dynamic[dim] = Dim(f"n_{axis}", min=least)
    with torch.no_grad():
        program = _refused_as(
            "cannot be traced by torch.export",
            # With sizes none of which are equal, 1, or the reference's: a size that is may be taken for a constant.
            lambda: torch.export.export(form, (inputs[-1],), dynamic_shapes=(dynamic,)),
            name,
        )
    return _Traced(name, program, dynamic, metadata, model, inputs)


def _grids(model: nn.Module, shape: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Three grids that a file is compared on, the least first."""
    if isinstance(model, MANO):
        if shape is not None:
            raise InputError(
                f"shape={tuple(shape)}, but the file of a MANO is for all sizes from its reference on: leave it out"
            )
        least = TraceableMANO(model).reference
        return [
            least,
            tuple(2 * n for n in least),
            tuple(2 * n + 3 + 2 * i for i, n in enumerate(least)),
        ]
    if shape is None:
        raise InputError(
            f"{type(model).__name__} can be traced for one grid only, expected its shape: give shape=(64, 64), or "
            "--shape 64x64"
        )
    return [tuple(shape)] * 3


def _physical(processor: FieldProcessor, normal: Tensor) -> Tensor:
    """Inputs in units, of values that are drawn as the model has them."""
    statistics = processor.to_dict()["inputs"]
    return FieldProcessor(statistics, statistics).eval().postprocess(normal, {})[0].to(normal.dtype)


def _metadata(run: Run | nn.Module, name: str, model: nn.Module, grid: tuple[int, ...]) -> dict[str, Any]:
    """What a reader of the file has to know to use it."""
    axes = Grid.uniform(grid).names
    found: dict[str, Any] = {"mano_op": version("mano_op"), "model": name, "axes": list(axes)}
    if isinstance(run, Run):
        units = run.training.get("units", {})
        for role, labels in (("inputs", run.processor.inputs), ("outputs", run.processor.outputs)):
            found[role] = [{"name": one, "units": units.get(one.partition("@")[0]) or ""} for one in labels]
        found["in_channels"], found["out_channels"] = len(found["inputs"]), len(found["outputs"])
    else:
        for channels in ("in_channels", "out_channels"):
            if not hasattr(model, channels):
                raise InputError(f"the {name} does not say its {channels}: give a Run, whose processor does")
            found[channels] = getattr(model, channels)
    found["units"] = "physical" if isinstance(run, Run) else "normalised"
    if isinstance(model, MANO):
        found |= {
            "reference_shape": list(grid),
            "registration": model.registration,
            "periodic": list(model.periodic),
            "grids": "at least reference_shape along each axis",
        }
    else:
        found |= {"shape": list(grid), "grids": "of this shape"}
    return found


def _errors(traced: _Traced, compute: Callable[[Tensor], Tensor]) -> dict[tuple[int, ...], float]:
    """How far a file is from the model on each of the inputs, if not too far."""
    errors = {}
    for x in traced.inputs:
        with torch.inference_mode():
            expected, found = traced.model(x), compute(x)
        error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not error <= TOLERANCE[x.dtype]:
            raise InputError(
                f"the file of {traced.name} differs from the model by {error:.1e} on an input of shape "
                f"{tuple(x.shape)}, expected at most {TOLERANCE[x.dtype]:.0e}, so it was not written: use the model "
                "itself, and report this with the versions of torch and onnxscript"
            )
        errors[tuple(x.shape)] = error
    return errors


def _onnx_program(program: ExportedProgram, dynamic: Mapping[int, Any]) -> Any:
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
            dynamic_shapes=(dynamic,),
        )


def _refused_as(what: str, work: Callable[[], Any], name: str) -> Any:
    """Do something of torch's; whatever it says that it cannot do is said in an `InputError`."""
    try:
        return work()
    except InputError:
        raise
    except Exception as error:  # torch has no common class for what it cannot trace
        reason = error.__cause__ or error
        first = " ".join(str(reason).split("For more information")[0].split())
        raise InputError(
            f"{name} {what} ({type(reason).__name__}: {first[:500]}): use the model in Python, or as a program of "
            "torch.export if that can have it"
        ) from error


def _check_path(path: str | Path, overwrite: bool) -> Path:
    path = Path(path)
    check_folder(path.parent)
    if not path.parent.exists():
        raise InputError(f"there is no folder {path.parent} for {path.name}: make it, or give another path")
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected the path of a file to write")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: give another path, or overwrite=True to replace it")
    return path


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"export to ONNX needs onnx and onnxscript, and {error.name} is not installed: pip install "
            "'mano_op[onnx]'"
        ) from error
