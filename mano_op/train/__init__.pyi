"""The names of the package: what `mano_op/train/__init__.py` imports on first use."""

from .fields import FieldTask as FieldTask
from .fields import train_model as train_model
from .loop import train as train
from .optimizer import warm_up_and_cosine as warm_up_and_cosine
from .options import FieldOptions as FieldOptions
from .options import ImageOptions as ImageOptions
from .options import TrainOptions as TrainOptions
