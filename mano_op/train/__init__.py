"""Training on a store, with neuraloperator's own Trainer."""

from mano_op.train.fit import train_model as train_model
from mano_op.train.objective import LOSSES as LOSSES
