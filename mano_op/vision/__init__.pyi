"""The names of the package: what `mano_op/vision/__init__.py` imports on first use."""

from .baselines import SwinClassifier as SwinClassifier
from .baselines import ViTClassifier as ViTClassifier
from .classifier import MANOClassifier as MANOClassifier
from .evaluate import evaluate_classifier as evaluate_classifier
from .images import open_images as open_images
from .swin import from_swin_v2 as from_swin_v2
from .training import train_classifier as train_classifier
