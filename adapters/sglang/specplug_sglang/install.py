"""The entry point of the group `sglang.srt.plugins`: SGLang calls `load` in every process, before it reads arguments."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def load() -> None:
    """Register the algorithm, its flag and its attention. What fails is said by the launch that asks for SPECPLUG.

    SGLang only logs what a plugin raises, and then knows no SPECPLUG; so nothing is raised here.
    """
    try:
        _set_up()
    except Exception as error:
        logger.warning("specplug: set-up for SGLang failed: %s: %s", type(error).__name__, error)
        from specplug_sglang import algorithm  # noqa: PLC0415  (needs SGLang's registry)

        algorithm.register(reason=f"{type(error).__name__}: {error}")


def _set_up() -> None:
    from specplug_sglang.versions import check_version  # noqa: PLC0415  (imported where it can be reported)

    check_version()
    from specplug_sglang import algorithm, arguments, attention  # noqa: PLC0415  (import SGLang)

    arguments.install()
    attention.register()
    algorithm.register()
