"""Controllers: how much to speculate, down to nothing. One method a file."""

from specplug.controllers.base import Arm, Controller, Plan
from specplug.controllers.batch_table import BatchTable
from specplug.controllers.fixed import Fixed
from specplug.controllers.goodput import Goodput
from specplug.controllers.memory import Memory
from specplug.controllers.slo import Slo

__all__ = ["Arm", "BatchTable", "Controller", "Fixed", "Goodput", "Memory", "Plan", "Slo"]
