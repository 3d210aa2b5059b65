"""Multipole attention as an operator layer of the neuraloperator ecosystem.

Names are imported on first use: the model side needs torch and neuraloperator, the data side xarray, zarr and
dask. `MANO` and `PublishedMANO` are in neuraloperator's registry as soon as both packages are imported, in
either order.
"""

from importlib import import_module

import lazy_loader
import wrapt

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

# neuraloperator registers a model when its class is defined.
wrapt.register_post_import_hook(lambda _: import_module("mano_op.models"), "neuralop")
