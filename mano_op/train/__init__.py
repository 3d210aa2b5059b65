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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
