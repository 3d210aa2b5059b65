"""Models at other resolutions than the one trained at, beside what no claim of transfer may ignore."""

from mano_op.transfer.evaluate import evaluate_transfer as evaluate_transfer
from mano_op.transfer.metrics import METRICS as METRICS
from mano_op.transfer.predictors import PREDICTORS as PREDICTORS
from mano_op.transfer.saved import load_results as load_results
from mano_op.transfer.saved import save_results as save_results
from mano_op.transfer.tables import table as table
from mano_op.transfer.tables import to_csv as to_csv
from mano_op.transfer.tables import to_json as to_json
from mano_op.transfer.verdict import summary as summary
