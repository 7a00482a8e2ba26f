"""Import-only, like the rest of this stand-in, except for an enumeration that others make tables of."""

from enum import Enum

from torchvision import absent

__getattr__ = absent(__name__)


class InterpolationMode(Enum):
    """The ways to resize an image, with torchvision's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"
