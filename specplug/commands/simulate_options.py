"""What `specplug simulate` is given, read: rates, lengths, contestants, and the machine."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from specplug.commands.plan_options import acceptance, whole
from specplug.cost.choice import Budget
from specplug.cost.device_memory import DeviceMemory
from specplug.cost.fitted import OVERHEAD, TARGET
from specplug.cost.magicdec import fit
from specplug.cost.presets import GIB, device, model_shape
from specplug.cost.profile import read_profile
from specplug.cost.roofline import Overheads, Roofline
from specplug.errors import OptionError
from specplug.simulation.contestants import PLAIN, Contestant, contestants
from specplug.simulation.experiment import Setting
from specplug.simulation.host import SimulatedHost
from specplug.simulation.machine import Bent, Measured
from specplug.simulation.workload import Lengths, Mix
from specplug.specification import build
from specplug.tree import TreeShape
from specplug.trees import Chain, TreeBuilder

LOOKUP = "prompt_lookup"
ROUND = 200e-6  # s a round that drafts, besides forwards: drawing, accepting, moving what was kept
LENGTH = 6  # of the chain that controllers choose from where no fixed length is compared
LONGEST = 2**16  # tokens of an output


def rates_of(text: str) -> list[float]:
    """Requests a second, rising."""
    try:
        found = [float(piece) for piece in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(1e-6 <= rate <= 1e6 and math.isfinite(rate) for rate in found):
        raise OptionError(f"--rate {text!r}: write requests a second, such as 0.5,1,2,4.")
    return sorted(set(found))


def lengths(option: str, text: str) -> Lengths:
    """`4k`, `1k-8k`, or several of them: each equally often."""
    ranges = []
    for piece in text.split(","):
        low, _, high = piece.partition("-")
        first = whole(option, low)
        last = whole(option, high) if high else first
        if last < first:
            raise OptionError(f"{option} {piece!r}: a range rises, such as 1k-8k.")
        ranges.append((first, last))
    found = Lengths(tuple(ranges))
    if option == "--output" and found.longest > LONGEST:
        raise OptionError(f"--output {text!r}: at most {LONGEST} tokens.")
    return found


def field_of(text: str) -> list[Contestant]:
    """Who is compared; plain decoding is what everything is measured against, and always among them."""
    found = contestants(text)
    return found if any(one.name == PLAIN for one in found) else [Contestant(PLAIN, 0), *found]


def setting_of(arguments: argparse.Namespace, field: Sequence[Contestant]) -> tuple[Setting, list[str]]:
    """The setting, and lines that say what is simulated."""
    mix = Mix(
        lengths("--prompt", arguments.prompt),
        lengths("--output", arguments.output),
        _ranks(arguments.acceptance),
    )
    tree = _tree(arguments.tree, field)
    most = whole("--max-batch", arguments.max_batch)
    build_setting = _measured if arguments.profile else _figured
    setting, heading = build_setting(arguments, mix, tree, most)
    kind = f"a chain of up to {tree.size}" if tree.is_chain else f"a tree of up to {tree.size}"
    return setting, [
        *heading,
        f"prompts {arguments.prompt}, outputs {arguments.output} tokens, acceptance {mix.acceptance[0]:g}",
        f"controllers choose {kind}; at most {setting.max_batch} rows",
    ]


def _figured(arguments: argparse.Namespace, mix: Mix, tree: TreeShape, most: int) -> tuple[Setting, list[str]]:
    """Times from a roofline that is bent."""
    for option in ("model", "device"):
        if getattr(arguments, option) is None:
            raise OptionError(f"simulate needs --{option} NAME, or --profile FILE.")
    target, draft = model_shape(arguments.model), arguments.draft
    machine = device(arguments.device, whole("--devices", arguments.devices))
    shape = model_shape(draft) if draft not in (None, LOOKUP) else None
    drafter = "model" if shape else draft or "self"
    fitted = fit()
    overheads = Overheads(
        _microseconds("--launch-us", arguments.launch_us, fitted.layer),
        _microseconds("--token-us", arguments.token_us, fitted.token),
    )
    roofline = Roofline(target, machine, {"model": shape} if shape else {}, overheads, ROUND)
    longest = mix.prompts.longest + mix.outputs.longest
    fitting = DeviceMemory(target, machine, shape).most_rows(longest)
    if not fitting:
        raise OptionError(f"{target.name} with {longest} tokens does not fit in {machine.memory / GIB:.1f} GiB.")
    setting = Setting(
        machine=lambda seed: Bent(roofline, seed),
        mix=mix,
        drafter=drafter,
        budget=_budget(arguments.budget, drafter),
        tree=tree,
        host=SimulatedHost("simulated", target.step_bytes, int(target.kv_bytes_per_token)),
        max_batch=min(most, fitting),
        eager=arguments.draft_reads == "prompts",
    )
    who = {"self": "self-speculation", LOOKUP: "prompt lookup"}.get(drafter, f"draft {shape.name}" if shape else "")
    return setting, [
        f"{target.name} on {machine.label}, {who}: a simulation",
        f"times not measured: a bent roofline, {overheads.layer * 1e6:.0f} us a layer and forward, {overheads.token * 1e6:.2f} us a layer and token",
    ]


def _measured(arguments: argparse.Namespace, mix: Mix, tree: TreeShape, most: int) -> tuple[Setting, list[str]]:
    """Times from a profile."""
    if arguments.model is not None or arguments.device is not None:
        raise OptionError("simulate takes --profile FILE, or --model and --device: not both.")
    profile = read_profile(arguments.profile)
    drafters = sorted(set(profile.cost.coefficients) - {TARGET, OVERHEAD})
    drafter = arguments.draft or (drafters[0] if drafters else LOOKUP)
    if drafter not in (*drafters, LOOKUP):
        known = ", ".join([*drafters, LOOKUP])
        raise OptionError(f"--draft {drafter!r}: {arguments.profile} has times of: {known}.")
    measured = Measured.of(profile)
    setting = Setting(
        machine=lambda seed: measured,
        mix=mix,
        drafter=drafter,
        budget=_budget(arguments.budget, drafter),
        tree=tree,
        host=SimulatedHost("simulated"),
        max_batch=most,
        eager=arguments.draft_reads == "prompts",
    )
    return setting, [
        f"{profile.model} on {profile.device}, drafter {drafter}: a simulation",
        f"times: {len(profile.samples)} measured in {arguments.profile}",
    ]


def _tree(text: str, field: Sequence[Contestant]) -> TreeShape:
    if not text:
        return Chain(max((one.length for one in field if one.length), default=LENGTH)).build()
    builder = build("trees", text)
    if not isinstance(builder, TreeBuilder):
        raise OptionError(f"--tree {text!r} is no tree.")
    shape = builder.build()
    if not shape.size:
        raise OptionError(f"--tree {text!r} has no draft tokens.")
    return shape


def _ranks(text: str) -> tuple[float, ...]:
    if "=" in text:
        raise OptionError(f"--acceptance {text!r}: one number, or one by rank; the draft has one budget here.")
    return next(iter(acceptance(text, None).values()))


def _budget(text: str, drafter: str) -> Budget:
    if not text:
        return 512 if drafter == "self" else None
    return None if text.strip().lower() == "full" else whole("--budget", text)


def _microseconds(option: str, text: str | None, default: float) -> float:
    try:
        value = default if text is None else float(text) * 1e-6
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise OptionError(f"{option} {text!r}: it must be a number of microseconds, not negative.")
    return value
