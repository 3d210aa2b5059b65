"""Images: MANO as a classifier, beside ViT and Swin."""

from mano_op.vision.classifier import MANOClassifier as MANOClassifier
