from .composite import compose as compose
from .layers import to_layers as to_layers
from .tiles import TileSource as TileSource
from .viewer import Layer as Layer
from .viewer import Viewer as Viewer
from .widget import SideBySide as SideBySide
from .widget import ViewerWidget as ViewerWidget
from .widget import show as show
