"""Import-only, like the rest of this stand-in."""

from torchvision import absent

__getattr__ = absent(__name__)
