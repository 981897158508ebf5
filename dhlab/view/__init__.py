"""Looking at scans: a viewer in the notebook, static pictures, and layers for other viewers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
