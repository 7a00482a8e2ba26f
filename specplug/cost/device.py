"""What a device can do: memory, bandwidth, arithmetic, and what several of them add."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from specplug.errors import OptionError


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of accelerator, `count` of them in tensor parallel. All figures are of one.

    `memory`: bytes. `bandwidth`: bytes/s. `flops`: dense 16-bit flop/s. `launch`: s a layer and forward that neither
    memory nor arithmetic explains; 0 is the pure roofline. `interconnect`: bytes/s that one device sends while it
    receives as much; 0 means that exchange costs nothing.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    launch: float = 0.0
    interconnect: float = 0.0
    count: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise OptionError(f"Device {self.name!r}: count is {self.count!r}; it must be a whole number.")
        for field in ("memory", "bandwidth", "flops", "launch", "interconnect", "count"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise OptionError(f"Device {self.name!r}: {field} is {value!r}; it must be a number.")
            if value < 0 or (value == 0 and field not in ("launch", "interconnect")):
                raise OptionError(f"Device {self.name!r}: {field} is {value}; it must be positive.")

    @classmethod
    def from_file(cls, path: str | Path) -> Device:
        """Read a JSON object whose keys are this class's fields. Raises `OptionError` naming what is wrong."""
        try:
            given = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OptionError(f"Cannot read the device {path}: {error}") from error
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, dict) or set(given) - set(known) or not {*known[:4]} <= set(given):
            raise OptionError(f"{path}: a device is a JSON object with {', '.join(known[:4])} and any of {known[4:]}.")
        return cls(**given)

    def times(self, count: int) -> Device:
        """`count` of these in tensor parallel."""
        return dataclasses.replace(self, count=count)

    @property
    def label(self) -> str:
        """The name with its count."""
        return self.name if self.count == 1 else f"{self.count} x {self.name}"
