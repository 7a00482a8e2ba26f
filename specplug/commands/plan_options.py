"""What `specplug plan` is given, read: lists, contexts, acceptance."""

from __future__ import annotations

from specplug.cost.choice import Budget, ranks
from specplug.errors import OptionError

DEFAULT_BUDGET = "512"
LARGEST = 2**40


def whole(option: str, text: str) -> int:
    """A positive whole number; `4k` is 4096, `1m` is 1048576."""
    digits, unit = text.strip().lower(), 1
    if digits.endswith(("k", "m")):
        unit, digits = 1024 ** (1 + "km".index(digits[-1])), digits[:-1]
    if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:15]) * unit <= LARGEST or len(digits) > 13:
        raise OptionError(f"{option} {text!r}: it must be a positive whole number, such as 32 or 4k.")
    return int(digits) * unit


def numbers(option: str, text: str) -> list[int]:
    """A comma-separated list of them."""
    return [whole(option, piece) for piece in text.split(",")]


def acceptance(text: str, budgets: str | None) -> dict[Budget, tuple[float, ...]]:
    """Acceptance by rank for each budget, from a number, one by rank, or one for each budget (then `budgets` is None)."""
    if "=" in text:
        if budgets is not None:
            raise OptionError("--acceptance names the budgets already: leave --budget out.")
        pairs = [piece.partition("=") for piece in text.split(",")]
        found: dict[Budget, tuple[float, ...]] = {_budget(name): ranks(_rate(rate)) for name, _, rate in pairs}
        if len(found) < len(pairs):
            raise OptionError(f"--acceptance {text!r} names a budget twice.")
        return found
    rates = tuple(_rate(piece) for piece in text.split(","))
    if sum(rates) > 1 + 1e-9:
        raise OptionError(
            f"--acceptance {text!r}: by rank, the rates are of one event each and must not exceed 1 in sum."
        )
    by_rank = ranks(rates[0]) if len(rates) == 1 else rates
    return {_budget(piece): by_rank for piece in (budgets or DEFAULT_BUDGET).split(",")}


def _budget(text: str) -> Budget:
    return None if text.strip().lower() == "full" else whole("--budget", text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise OptionError(f"--acceptance {text!r}: it must be a number from 0 to 1.")
    return rate
