"""Whether the FlashInfer that is installed is the one that the code and the stand-in were written for. Needs no GPU."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import fake_flashinfer
import pytest
import torch

pytest.importorskip("flashinfer", reason="needs the flashinfer package (specplug[flashinfer])")

import flashinfer

from specplug_kernels import flashinfer_wrappers
from specplug_kernels.flashinfer_bitmap import SOURCE, VARIANT, jit_arguments
from specplug_kernels.flashinfer_paths import largest_tile

WRAPPER = flashinfer.BatchPrefillWithPagedKVCacheWrapper
FAKE = fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper
HEADERS = Path(flashinfer.__file__).parent / "data" / "include" / "flashinfer"


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FAKE.__init__, WRAPPER.__init__),
        (FAKE.plan, WRAPPER.plan),
        (FAKE.run, WRAPPER.run),
        (fake_flashinfer.merge_state_in_place, flashinfer.merge_state_in_place),
    ],
)
def test_the_stand_in_takes_what_the_real_one_takes(fake: object, real: object) -> None:
    """Every argument of the stand-in's is one of the real one's, in the same manner and with the same default."""
    ours, theirs = inspect.signature(fake).parameters, inspect.signature(real).parameters
    for name, parameter in ours.items():
        assert name in theirs, name
        assert parameter.kind == theirs[name].kind and parameter.default == theirs[name].default, name
    left_out = [p for name, p in theirs.items() if name not in ours and p.kind != p.VAR_POSITIONAL]
    assert all(p.default is not p.empty for p in left_out)


def test_what_is_not_in_a_signature() -> None:
    plan, run = inspect.getsource(WRAPPER.plan), inspect.getsource(WRAPPER.run)
    assert "self._mask_indptr_buf = mask_indptr" in plan and "self._mask_indptr_buf.copy_" in plan
    assert "self._mask_indptr_buf" in run and "MaskMode.CUSTOM" in run
    assert "prepare_jit_additional_args" in run  # tensors and scalars of our kernel, in the order of jit_args
    pack = inspect.getsource(flashinfer.segment_packbits)
    assert ".item()" in pack  # why custom_mask is not used: it wants pointers on the device, and waits for them


def test_figures_taken_from_the_headers() -> None:
    def header(name: str) -> str:
        return (HEADERS / name).read_text()

    hidden = re.search(r"constexpr float inf = (.*);", header("math.cuh"))[1]
    assert hidden == "5e4" or "infinity()" in hidden  # NOTHING_SEEN lies above either
    assert f"num_blocks_per_sm = {flashinfer_wrappers.CTAS_A_PROCESSOR};" in header("attention/scheduler.cuh")
    tile = re.search(r"avg_packed_qo_len > 64 && head_dim < 256\) \{\s*return (\d+);", header("utils.cuh"))
    assert int(tile[1]) == largest_tile(64) == largest_tile(128)
    assert largest_tile(256) == 64
    prefill = header("attention/prefill.cuh")
    assert "KTraits::MaskFillValue" in prefill and "-math::inf" in prefill
    assert "iter >= mask_iteration || iter < window_iteration" in prefill
    assert "Both s and s_other are logsumexp values with base 2" in header("attention/cascade.cuh")


@pytest.mark.parametrize("capped", [False, True])
def test_the_bitmap_kernel_is_generated(capped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = generate(tmp_path, monkeypatch, torch.bfloat16, 128, capped=capped)
    config = (sources / "batch_prefill_config.inc").read_text()
    assert f"using AttentionVariant = {VARIANT}<{str(capped).lower()}>;" in config and SOURCE.strip() in config
    assert "uint32_t* bitmap;" in config and "int64_t bitmap_words;" in config


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("dtype", "head_dim", "capped"), [(torch.bfloat16, 128, False), (torch.float16, 64, True)])
def test_the_bitmap_kernel_compiles(
    dtype: torch.dtype, head_dim: int, capped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its causal kernel, for sm_90; a minute each."""
    sources = generate(tmp_path, monkeypatch, dtype, head_dim, capped=capped)
    command = ["nvcc", "-std=c++17", "-arch=sm_90a", "-O3", "-c", "-DFLASHINFER_ENABLE_BF16", "-DFLASHINFER_ENABLE_F16"]
    command += ["--expt-relaxed-constexpr", f"-I{HEADERS.parent}", f"-I{HEADERS.parents[1] / 'csrc'}", f"-I{sources}"]
    command += [
        *ffi_includes(),
        str(sources / "batch_prefill_paged_kernel_mask_1.cu"),
        "-o",
        str(tmp_path / "kernel.o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "kernel.o").stat().st_size > 10000


def generate(folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int, *, capped: bool) -> Path:
    """The folder that FlashInfer writes the kernel's sources into."""
    from flashinfer.jit import core, env
    from flashinfer.jit.attention import modules

    monkeypatch.setattr(core.current_compilation_context, "TARGET_CUDA_ARCHS", {(9, "0a")})
    monkeypatch.setattr(env, "FLASHINFER_GEN_SRC_DIR", folder)
    arguments = jit_arguments(dtype, head_dim, capped=capped)
    modules.gen_customize_batch_prefill_module("fa2", *arguments)
    return folder / arguments[0]


def ffi_includes() -> list[str]:
    import tvm_ffi
    from flashinfer.jit import cpp_ext

    paths = [
        tvm_ffi.libinfo.find_include_path(),
        tvm_ffi.libinfo.find_dlpack_include_path(),
        *cpp_ext.get_cccl_includes(),
    ]
    return [f"-I{path}" for path in paths]
