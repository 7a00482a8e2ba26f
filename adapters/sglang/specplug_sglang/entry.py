"""The entry point in the group `specplug`: SGLang's commands. Imports no SGLang."""

from __future__ import annotations

from specplug.hookspecs import Register, hookimpl


@hookimpl
def specplug_register_commands(register: Register) -> None:
    from specplug_sglang.commands import bench  # noqa: PLC0415  (not at `import specplug`)

    register("bench-sglang", bench.add_parser)
