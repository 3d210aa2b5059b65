"""Images: MANO as a classifier, from Swin's weights if there are any, beside ViT and Swin."""

from mano_op.vision.baselines import SwinClassifier as SwinClassifier
from mano_op.vision.baselines import ViTClassifier as ViTClassifier
from mano_op.vision.classifier import MANOClassifier as MANOClassifier
from mano_op.vision.swin import from_swin_v2 as from_swin_v2
