"""Training: a task has the model and the data, one loop trains it.

=================  ==============================================================
`options`          the options of a training, each declared once
`fields`           the task of fields, and `train_model`; that of images is
                   `mano_op.vision.training`
`task`             what every task has
`loop`             batches, steps, validation, logs, checkpoints: `train`
`checkpoint`       a training that can be continued
=================  ==============================================================
"""

from mano_op.train.fields import FieldTask as FieldTask
from mano_op.train.fields import train_model as train_model
from mano_op.train.loop import train as train
from mano_op.train.options import FieldOptions as FieldOptions
from mano_op.train.options import ImageOptions as ImageOptions
from mano_op.train.options import TrainOptions as TrainOptions
