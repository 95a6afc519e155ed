"""Data in memory: images by name, and small tasks whose datasets can be enumerated.

`load` returns NumPy arrays; `synthetic` enumerates datasets with their weights. TensorFlow
Datasets is imported only to load an image set that needs it.
"""

from nopr.data import synthetic
from nopr.data.arrays import Images, Split
from nopr.data.loading import NAMES, load

__all__ = ["NAMES", "Images", "Split", "load", "synthetic"]
