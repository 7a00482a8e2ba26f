"""What `Speculator(kernel=)` may say here: kernels over a cache with a place for every row, and over a paged one."""

from __future__ import annotations

from specplug_kernels import available_kernels

# Those that read pages, by what they are called in `specplug_kernels.plan_paged_attention`.
PAGED = {
    "paged": "torch",
    "triton": "triton",
    "flashinfer": "flashinfer",
    "flashinfer-merge": "flashinfer-merge",
    "flashinfer-mask": "flashinfer-mask",
    "flashinfer-bitmap": "flashinfer-bitmap",
}
KERNELS = {
    "auto": "Tree attention chosen by shape and device.",
    **{name: f"Tree attention {name!r}, always." for name in available_kernels() if name != "auto"},
    **{name: f"Tree attention over a paged cache by {plan!r}, always." for name, plan in PAGED.items()},
}
