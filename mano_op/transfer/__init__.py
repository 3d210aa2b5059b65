"""Evaluate resolution transfer against the baselines that it has to beat."""

from mano_op.transfer.evaluate import evaluate_transfer as evaluate_transfer
from mano_op.transfer.evidence import Evidence as Evidence
from mano_op.transfer.io import load_results as load_results
from mano_op.transfer.io import save_results as save_results
from mano_op.transfer.metrics import METRICS as METRICS
from mano_op.transfer.predictors import PREDICTORS as PREDICTORS
from mano_op.transfer.runs import Trained as Trained
from mano_op.transfer.significance import summary as summary
from mano_op.transfer.tables import table as table
from mano_op.transfer.tables import to_csv as to_csv
from mano_op.transfer.tables import to_json as to_json
