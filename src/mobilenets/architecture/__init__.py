"""The family: specification, Table 1 as data, preprocessing. `network` and `layers` need torch."""

from mobilenets.architecture.body import BODY
from mobilenets.architecture.layer_rows import Block, Layer, blocks_of, layers_of
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec

__all__ = ["BODY", "Block", "Layer", "MobileNetSpec", "Preprocessing", "blocks_of", "layers_of"]
