"""Multipole attention as an operator layer of the neuraloperator ecosystem.

The model side is imported with the package, which registers `MANO` with neuraloperator. The data side
brings in xarray, zarr and dask, so it is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mano_op.errors import InputError as InputError
from mano_op.grid import Axis as Axis
from mano_op.grid import Grid as Grid
from mano_op.layers.convolution import MultipoleConv as MultipoleConv
from mano_op.layers.multipole import MultipoleAttention as MultipoleAttention
from mano_op.layers.reference import fix_references as fix_references
from mano_op.models.mano import MANO as MANO
from mano_op.models.published import PublishedMANO as PublishedMANO
from mano_op.resample import resample as resample

if TYPE_CHECKING:
    from mano_op.data.check import check_store as check_store
    from mano_op.data.coarsen import coarsen_store as coarsen_store
    from mano_op.data.dataset import FieldDataset as FieldDataset
    from mano_op.data.fields import write_fields as write_fields
    from mano_op.data.importers import import_fno_mat as import_fno_mat
    from mano_op.data.importers import import_netcdf as import_netcdf
    from mano_op.data.importers import import_neuralop_pt as import_neuralop_pt
    from mano_op.data.importers import import_pdebench as import_pdebench
    from mano_op.data.importers import import_the_well as import_the_well
    from mano_op.data.loaders import field_loaders as field_loaders
    from mano_op.data.mixed import Mixed as Mixed
    from mano_op.data.patches import PatchDataset as PatchDataset
    from mano_op.data.processor import FieldProcessor as FieldProcessor
    from mano_op.data.sampler import ResolutionBatchSampler as ResolutionBatchSampler
    from mano_op.data.store import open_store as open_store
    from mano_op.export import export_onnx as export_onnx
    from mano_op.export import export_program as export_program
    from mano_op.models.traceable import TraceableMANO as TraceableMANO
    from mano_op.problems.generate import generate_darcy as generate_darcy
    from mano_op.problems.generate import generate_fields as generate_fields
    from mano_op.runs import load_run as load_run
    from mano_op.runs import save_run as save_run
    from mano_op.train import train_model as train_model
    from mano_op.transfer import evaluate_transfer as evaluate_transfer

__version__ = "0.1.0"

_WHEN_USED = {
    "FieldDataset": "mano_op.data.dataset",
    "Mixed": "mano_op.data.mixed",
    "field_loaders": "mano_op.data.loaders",
    "write_fields": "mano_op.data.fields",
    "import_fno_mat": "mano_op.data.importers",
    "import_netcdf": "mano_op.data.importers",
    "import_neuralop_pt": "mano_op.data.importers",
    "import_pdebench": "mano_op.data.importers",
    "import_the_well": "mano_op.data.importers",
    "ResolutionBatchSampler": "mano_op.data.sampler",
    "check_store": "mano_op.data.check",
    "coarsen_store": "mano_op.data.coarsen",
    "generate_darcy": "mano_op.problems.generate",
    "generate_fields": "mano_op.problems.generate",
    "TraceableMANO": "mano_op.models.traceable",
    "export_onnx": "mano_op.export",
    "export_program": "mano_op.export",
    "PatchDataset": "mano_op.data.patches",
    "FieldProcessor": "mano_op.data.processor",
    "load_run": "mano_op.runs",
    "save_run": "mano_op.runs",
    "open_store": "mano_op.data.store",
    "train_model": "mano_op.train",
    "evaluate_transfer": "mano_op.transfer",
}

__all__ = [  # some of them from the table above
    "MANO",
    "Axis",
    "Grid",
    "InputError",
    "MultipoleAttention",
    "MultipoleConv",
    "PublishedMANO",
    "fix_references",
    "resample",
    *_WHEN_USED,
]


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'mano_op' has no attribute {name!r}")
    return getattr(import_module(_WHEN_USED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHEN_USED])
