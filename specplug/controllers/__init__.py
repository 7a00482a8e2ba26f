"""Controllers: how much to speculate, down to nothing. One method a file."""

from specplug.controllers.auto import Auto
from specplug.controllers.base import Arm, Controller, Plan
from specplug.controllers.fixed import Fixed
from specplug.controllers.memory import Memory

__all__ = ["Arm", "Auto", "Controller", "Fixed", "Memory", "Plan"]
