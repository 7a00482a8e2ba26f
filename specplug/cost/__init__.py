"""What a round costs: from a model's and a device's numbers, or from measurements."""

from specplug.cost.base import CostModel, Load
from specplug.cost.device import Device
from specplug.cost.device_memory import DeviceMemory
from specplug.cost.model_shape import ModelShape
from specplug.cost.planner import Planner
from specplug.cost.roofline import Roofline

__all__ = ["CostModel", "Device", "DeviceMemory", "Load", "ModelShape", "Planner", "Roofline"]
