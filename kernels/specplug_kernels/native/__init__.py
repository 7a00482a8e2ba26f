"""Tree attention in C: built on the user's machine when it is first wanted, and loaded if it proves right.

:mod:`~specplug_kernels.native.build` compiles and keeps the library, :mod:`~specplug_kernels.native.library` loads, tries and
calls it; the backend is :mod:`specplug_kernels.tree_attention_native`.
"""
