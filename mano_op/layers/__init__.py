"""Multipole attention: windows, the steps between levels, and the layer made of them."""

from mano_op.layers.attention import PositionBias as PositionBias
from mano_op.layers.attention import WindowAttention as WindowAttention
from mano_op.layers.convolution import MultipoleConv as MultipoleConv
from mano_op.layers.multipole import MultipoleAttention as MultipoleAttention
from mano_op.layers.pyramid import Prolong as Prolong
from mano_op.layers.pyramid import Restrict as Restrict
from mano_op.layers.style import Style as Style
from mano_op.layers.windows import Windows as Windows
