"""Images: MANO as a classifier, from Swin's weights if there are any, beside ViT and Swin.

Names are imported on first use. The classifiers are in neuraloperator's registry as soon as both packages are
imported.
"""

from importlib import import_module

import lazy_loader
import wrapt

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

wrapt.register_post_import_hook(lambda _: import_module("mano_op.vision.classifier"), "neuralop")
wrapt.register_post_import_hook(lambda _: import_module("mano_op.vision.baselines"), "neuralop")
