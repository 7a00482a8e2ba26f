"""What a survey of policies found: shares by question, policy and place, and their differences."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from specplug_hf.reading.share import Difference, Share, difference

Shares = dict[str, dict[int, Share]]
BASE = "streaming"  # what the others are compared with


def _shares() -> Any:
    return defaultdict(lambda: defaultdict(Share))


@dataclass(slots=True)
class Found:
    """By policy: acceptance by context, by tokens generated (start of the bin), of needles by context; why one was left out.

    `whole` is of all bins together, by the tokens generated in all.

    `needle` is of the tokens that the needle changes, `recalled` of those that the target says right only with it (needle.py).
    `target`: of all tokens of needles, by context, what the target itself makes of them.
    """

    context: Shares = field(default_factory=_shares)
    generated: Shares = field(default_factory=_shares)
    whole: Shares = field(default_factory=_shares)
    needle: Shares = field(default_factory=_shares)
    recalled: Shares = field(default_factory=_shares)
    target: Shares = field(default_factory=_shares)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Shares]:
        """What is compared between policies, by name."""
        return {
            "context": self.context,
            "generated": self.generated,
            "whole": self.whole,
            "needle": self.needle,
            "recalled": self.recalled,
        }

    def differences(self, shares: Shares) -> dict[str, dict[int, Difference | None]]:
        """How much higher a policy is than another on the same texts, by "one - other" and place: all over `BASE`, and a
        choice made anew over one made once."""
        pairs = [(name, BASE) for name in shares if name not in (BASE, "full")] + [("snapkv", "snapkv once")]
        return {
            f"{one} - {other}": {at: difference(shares[one][at], shares[other][at]) for at in sorted(shares[one])}
            for one, other in pairs
            if one in shares and other in shares
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {part: _listed(shares) for part, shares in (self.parts | {"target": self.target}).items()}
        gaps = {part: _gaps(self.differences(shares)) for part, shares in self.parts.items()}
        return parts | {"differences": gaps, "left_out": self.left_out}


def _listed(shares: Shares) -> dict[str, dict[str, Any]]:
    return {name: {str(at): _entry(share) for at, share in by.items()} for name, by in shares.items()}


def _entry(share: Share) -> dict[str, Any]:
    return {
        "trials": share.trials,
        "accepted": share.successes,
        "share": share.value if share.trials else None,
        "interval": share.interval,
        "texts": {str(text): counts for text, counts in share.texts.items()},
    }


def _gaps(differences: dict[str, dict[int, Difference | None]]) -> dict[str, dict[str, Any]]:
    return {
        name: {str(at): {"mean": gap.mean, "interval": gap.interval} for at, gap in by.items() if gap is not None}
        for name, by in differences.items()
    }
