"""The names of the package: what `mano_op/__init__.py` imports on first use, and what type checkers see."""

from .data.check import check_store as check_store
from .data.coarsen import coarsen_store as coarsen_store
from .data.dataset import FieldDataset as FieldDataset
from .data.importers import import_fno_mat as import_fno_mat
from .data.importers import import_netcdf as import_netcdf
from .data.importers import import_neuralop_pt as import_neuralop_pt
from .data.importers import import_pdebench as import_pdebench
from .data.importers import import_the_well as import_the_well
from .data.loaders import FieldLoaders as FieldLoaders
from .data.loaders import field_loaders as field_loaders
from .data.mixed import Mixed as Mixed
from .data.patches import PatchDataset as PatchDataset
from .data.processor import FieldProcessor as FieldProcessor
from .data.sampler import ResolutionBatchSampler as ResolutionBatchSampler
from .data.store import FieldStore as FieldStore
from .data.store import open_store as open_store
from .data.write import write_fields as write_fields
from .errors import InputError as InputError
from .export import export_onnx as export_onnx
from .export import export_program as export_program
from .grid import Axis as Axis
from .grid import Grid as Grid
from .layers.convolution import MultipoleConv as MultipoleConv
from .layers.multipole import MultipoleAttention as MultipoleAttention
from .layers.reference import fix_references as fix_references
from .models.mano import MANO as MANO
from .models.published import PublishedMANO as PublishedMANO
from .problems.generate import generate_darcy as generate_darcy
from .problems.generate import generate_fields as generate_fields
from .report import write_report as write_report
from .resample import resample as resample
from .runs import Run as Run
from .runs import load_run as load_run
from .runs import save_run as save_run
from .train import train_model as train_model
from .train.optimizer import MuonAdamW as MuonAdamW
from .transfer import Evidence as Evidence
from .transfer import Trained as Trained
from .transfer import evaluate_transfer as evaluate_transfer
from .transfer import summary as summary
from .transfer import table as table

__version__: str
