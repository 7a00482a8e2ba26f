"""Kernels in C: built on the user's machine when they are first wanted, and loaded if they prove right.

:mod:`~specplug_kernels.native.build` compiles and keeps them, :mod:`~specplug_kernels.native.library` says what every one is; how each is
called and tried stands in a file of its own, ``<kernel>_library.py``.
"""
