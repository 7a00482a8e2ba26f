"""Controllers: how much to speculate, down to nothing. One method a file."""

from specplug.controllers.base import Arm, Controller, Plan
from specplug.controllers.fixed import Fixed
from specplug.controllers.goodput import Goodput
from specplug.controllers.memory import Memory

__all__ = ["Arm", "Controller", "Fixed", "Goodput", "Memory", "Plan"]
