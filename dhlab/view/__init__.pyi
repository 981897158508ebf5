from .composite import compose as compose
from .layers import to_layers as to_layers
from .tiles import TileSource as TileSource
from .widget import Viewer as Viewer
from .widget import show as show
