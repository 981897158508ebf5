__version__: str

from . import kernels as kernels
from . import mil as mil
from .annotations import Annotations as Annotations
from .cards import ModelCard as ModelCard
from .datasets import Dataset as Dataset
from .diagnosis import doctor as doctor
from .errors import DHLabError as DHLabError
from .evaluation import calibrate as calibrate
from .evaluation import evaluate as evaluate
from .explanation import explain as explain
from .grid import TileGrid as TileGrid
from .inference import predict as predict
from .io import open as open
from .io import save as save
from .models import Model as Model
from .models import create_model as create_model
from .models import load_model as load_model
from .packaging import export as export
from .report import Report as Report
from .samples import sample as sample
from .scan import Scan as Scan
from .tiles import Tiles as Tiles
from .timeline import Timeline as Timeline
from .tissue import find_tissue as find_tissue
from .training import fit as fit
from .view import show as show
