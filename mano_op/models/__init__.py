"""Models for neuraloperator: importing them registers them there."""

from mano_op.models.mano import MANO as MANO
from mano_op.models.published import PublishedMANO as PublishedMANO
