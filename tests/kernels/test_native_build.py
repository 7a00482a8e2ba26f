"""Building the compiled attention: what is kept, what is refused, and what is said where it cannot be."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from library_tools import changed_source, quick_build, run_guarded, small_source
from native_tools import make_case, skip_without_library

from specplug_kernels import available_kernels, dispatch, explain
from specplug_kernels.native import build as building
from specplug_kernels.native import library as loading
from specplug_kernels.native.attention_library import AttentionLibrary, attention_library
from specplug_kernels.native.build import BuildError, build, cache_folder, find_compiler, is_whole
from specplug_kernels.native.library import UnusableError
from specplug_kernels.processor import Processor

SHAPES = (1, 8, 2, 32), (1, 2, 300, 32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a build that does not optimise, which takes a second."""
    skip_without_library()
    quick_build(monkeypatch, tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not looked for the library yet."""
    monkeypatch.setattr(attention_library, "found", None)


def without_compiler(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(empty))


# ---- Kept, and built again where it is not what was left. ----


@pytest.fixture
def small(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache, for what is built in a moment: how a library is kept does not depend on what it does."""
    small_source(monkeypatch, tmp_path / "sources")
    return cache


def answer(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def test_it_is_built_once(cache: Path) -> None:
    path = build()
    assert path.parent == cache and is_whole(path) and os.stat(path).st_mode & 0o077 == 0
    assert os.stat(cache).st_mode & 0o777 == 0o700
    built = path.stat().st_mtime_ns
    assert build() == path and path.stat().st_mtime_ns == built
    assert list(cache.iterdir()) == [path]
    AttentionLibrary(path)


@pytest.mark.parametrize("damage", ["cut", "changed", "writable", "link", "empty"])
def test_a_library_that_is_not_as_it_was_left_is_built_again(damage: str, small: Path, tmp_path: Path) -> None:
    path = build()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif damage == "writable":
        path.chmod(0o722)
    elif damage == "link":
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.write_bytes(b"")
    assert not is_whole(path)
    assert build() == path and is_whole(path) and not path.is_symlink() and answer(path) == 42


def test_what_it_depends_on_is_in_its_name(small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {build().name}
    for change in (
        lambda: monkeypatch.setattr(building, "_processor", lambda: "another one"),
        lambda: monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-g")),
        lambda: monkeypatch.setenv("CC", f"{find_compiler()[0]} -DX"),
        lambda: monkeypatch.setattr(building, "torch_openmp", lambda: None),
        lambda: small_source(monkeypatch, tmp_path / "sources", answer=43),
        lambda: (tmp_path / "sources" / "header.h").write_text("#pragma once\n"),
    ):
        before = len(names)
        change()
        names.add(build().name)
        assert len(names) == before + 1
    assert answer(build()) == 43


def test_another_version_of_the_compiler_is_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = building._key("tree_attention", ["cc"], "cc 12.2", None)
    assert key != building._key("tree_attention", ["cc"], "cc 12.3", None)
    assert key == building._key("tree_attention", ["cc"], "cc 12.2", None)


@pytest.mark.slow
def test_two_processes_at_once(cache: Path) -> None:
    program = (
        "from specplug_kernels.native import build as b; from specplug_kernels.native.attention_library import AttentionLibrary as L;"
        "b.FLAGS = tuple(f.replace('-O3', '-O0') for f in b.FLAGS); L(b.build()); print('loaded')"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["loaded\n"] * 2
    (path,) = cache.iterdir()
    assert is_whole(path)


# ---- Where it is kept. ----


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPECPLUG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home/.cache/specplug"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/specplug"
    monkeypatch.setenv("SPECPLUG_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert all((tmp_path / name).is_dir() for name in ("home/.cache/specplug", "xdg/specplug", "own"))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o1777])
def test_a_cache_that_others_may_write_to_is_refused(mode: int, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(BuildError, match="can be written to by others"):
        build()
    assert not list(cache.iterdir())


def test_somebody_elses_cache_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is faked: only root could give a folder away."""
    path = build()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert not is_whole(path)
    with pytest.raises(BuildError, match=f"belongs to user {owner}"):
        build()


def test_a_cache_that_cannot_be_made(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECPLUG_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(BuildError, match="the cache cannot be used"):
        build()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_to(cache: Path) -> None:
    cache.mkdir(mode=0o500)
    with pytest.raises(BuildError, match="the cache cannot be used"):
        build()


# ---- Compilers. ----


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_compiler(monkeypatch, tmp_path)
    with pytest.raises(BuildError, match="no C compiler is found"):
        build()
    assert not cache.exists()


def test_the_compiler_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cc", "gcc", "mycc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    without_compiler(monkeypatch, tmp_path)
    assert find_compiler() == [str(tmp_path / "gcc")]
    (tmp_path / "gcc").unlink()
    assert find_compiler() == [str(tmp_path / "cc")]
    monkeypatch.setenv("CC", "mycc -m64 '-DNAME=a b'")
    assert find_compiler() == [str(tmp_path / "mycc"), "-m64", "-DNAME=a b"]
    monkeypatch.setenv("CC", "nothing-like-it")
    with pytest.raises(BuildError, match="nothing-like-it, which is not found"):
        find_compiler()
    monkeypatch.setenv("CC", "gcc '-DX")
    with pytest.raises(BuildError, match="CC cannot be read: No closing quotation"):
        find_compiler()


def test_a_compilation_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed_source(monkeypatch, tmp_path, "tree_attention.c", "#pragma once", "#error this will not do")
    with pytest.raises(BuildError, match=r"fails: .*error: .*this will not do"):
        build()
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("script", "because"), [("exit 3", "without a word"), ("sleep 60", "has not ended in 0.2 seconds")]
)
def test_a_compiler_that_does_not_work(
    script: str, because: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    monkeypatch.setattr(building, "SECONDS", 0.2)
    with pytest.raises(BuildError, match=because):
        build()


def test_clang_is_not_linked_with_another_compilers_runtime(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in that says it is clang, and is gcc."""
    (tmp_path / "clang").write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo clang version 19; else exec {find_compiler()[0]} "$@"; fi\n'
    )
    (tmp_path / "clang").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "clang"))
    assert not AttentionLibrary(build()).threads


# ---- Loading. ----


def test_what_is_no_library_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(UnusableError, match="it does not load"):
        AttentionLibrary(tmp_path / "text.so")


@pytest.mark.parametrize(
    ("old", "new", "because"),
    [
        ("return sizeof(struct call);", "return 8;", "its arguments take 8 bytes"),
        ("all((float)call->scale)", "all(1.0f)", "off by"),
        ("int specplug_has_threads", "int specplug_had_threads", "it does not load"),
    ],
)
def test_a_library_that_does_not_do_what_it_should_is_not_used(
    old: str, new: str, because: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed_source(monkeypatch, tmp_path, "tree_attention.c", old, new)
    with pytest.raises(UnusableError, match=because):
        AttentionLibrary(build())


BLOCK_FAULTS = {
    "no scale": ("*(vector_at *)(scores + c * SIDE) *= all_wide(scale);", ""),
    "columns twice": ("_tile_loadd(4, at + SIDE * stride + d * 2, stride);", "_tile_loadd(4, at + d * 2, stride);"),
    "old sums as they were": ("if (decay[r] != 1.0f)", "if (0)"),
    "not turned": ("turn(pairs), turn(left);", ""),
    "half of a value twice": ("_tile_loadd(5, paired[g] + SIDE * SIDE, LINE);", "_tile_loadd(5, paired[g], LINE);"),
    "odd ones first": ("_mm512_srli_epi32(one, 16)", "_mm512_andnot_si512(upper, one)"),
}


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="the processor does not multiply blocks (AMX)")
@pytest.mark.parametrize(("old", "new"), BLOCK_FAULTS.values(), ids=BLOCK_FAULTS)
def test_a_library_whose_blocks_are_wrong_is_not_used(
    old: str, new: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed_source(monkeypatch, tmp_path, "blocks.h", old, new)
    with pytest.raises(UnusableError, match="in torch.bfloat16 it is off by"):
        AttentionLibrary(build())


PAIR_FAULTS = {
    "even lanes twice": ("_mm512_add_epi32(even, _mm512_set1_epi32(1))", "even", "lanes.h"),
    "the first pair twice": ("_mm512_set1_epi64(pairs)", "_mm512_set1_epi32((int)pairs)", "lanes.h"),
    "one column twice": (
        "neighbours(dots[2 * c], dots[2 * c + 1])",
        "neighbours(dots[2 * c], dots[2 * c])",
        "tree_attention.c",
    ),
    "rows side by side": ("to + d / 4 * WIDE + row * 2,", "to + d / 4 * WIDE + row,", "tree_attention.c"),
    "another column": (
        "memcpy(&pairs, key[c] + offset + d * 2, 8);",
        "memcpy(&pairs, key[0] + offset + d * 2, 8);",
        "tree_attention.c",
    ),
}


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    reason="the processor does not multiply eight rows of bf16 in pairs",
)
@pytest.mark.parametrize(("old", "new", "source"), PAIR_FAULTS.values(), ids=PAIR_FAULTS)
def test_a_library_whose_products_of_pairs_are_wrong_is_not_used(
    old: str, new: str, source: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed_source(monkeypatch, tmp_path, source, old, new)
    with pytest.raises(UnusableError, match="in torch.bfloat16 it is off by"):
        AttentionLibrary(build())


@pytest.mark.usefixtures("anew")
def test_what_is_missing_is_said_once_and_torch_serves(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_compiler(monkeypatch, tmp_path)
    case = make_case(groups=2, nodes=3, columns=40, prefix=20)
    case.bias[..., -1] = 0.0
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            torch.testing.assert_close(case.run("auto").double(), case.exact(), atol=1e-5, rtol=1e-5)
            with pytest.raises(ValueError, match="kernel 'native' does not serve: .*no C compiler is found"):
                case.run("native")
    said = [record.getMessage() for record in caplog.records if record.name == loading.__name__]
    assert said == ["compiled tree attention is not available, torch serves: no C compiler is found (gcc, cc)"]
    assert "(not native: it is not available: no C compiler" in explain(*SHAPES)
    assert "native" in available_kernels()


@pytest.mark.usefixtures("anew")
def test_it_can_be_turned_off(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SPECPLUG_NATIVE", "0")
    assert explain(*SHAPES) == (
        "sdpa: 300 columns in all, fewer than 8192: one call costs least "
        "(not native: it is not available: SPECPLUG_NATIVE=0 turns it off)"
    )
    with pytest.raises(ValueError, match="SPECPLUG_NATIVE=0"):
        make_case().run()
    assert not cache.exists() and not caplog.records


@pytest.mark.usefixtures("anew")
def test_the_first_call_builds_it(cache: Path) -> None:
    make_case().run("auto")
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("anew")
def test_nothing_is_built_for_heads_that_are_not_served(cache: Path) -> None:
    make_case(dim=20).run("auto")
    assert attention_library.found is None and not cache.exists()


def test_importing_builds_nothing(tmp_path: Path) -> None:
    program = "import specplug_kernels, specplug_hf.kernels; print(specplug_kernels.available_kernels())"
    environment = os.environ | {"SPECPLUG_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "'native'" in done.stdout and not (tmp_path / "cache").exists()


# ---- Choosing. ----


def test_it_is_chosen_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_library()
    found = attention_library()
    if not found.vectors:
        pytest.skip("chosen only where the processor has AVX2")
    assert explain(*SHAPES) == "native: 8 packed rows of 32: one compiled pass over the cache"
    for query, key, dtype, because in (
        ((1, 8, 2, 20), (1, 2, 300, 20), torch.float32, "heads of 20"),
        ((1, 8, 400, 32), (1, 2, 300, 32), torch.float32, "1600 packed rows, more than"),
        ((1, 8, 2, 32), (1, 2, 300, 32), torch.float64, "not from torch.float64"),
    ):
        assert because in explain(query, key, dtype=dtype).partition("(not native: ")[2]
    assert "native" not in explain(*SHAPES, device="cuda")
    many = (1, 8, 16, 64), (1, 2, 300, 64)
    for kind, blocks in itertools.product(Processor, (False, True)):
        monkeypatch.setattr(dispatch, "processor", lambda kind=kind: kind)
        monkeypatch.setattr(found, "blocks", blocks)
        assert explain(*SHAPES, dtype=torch.bfloat16).startswith("native: ")
        assert explain(*many).startswith("native: ")
        few = kind is Processor.AMX and not blocks
        assert ("64 packed rows, more than 32" in explain(*many, dtype=torch.bfloat16)) == few


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        (lambda case: None, "native"),
        (lambda case: setattr(case, "query", case.query.requires_grad_()), "sdpa"),
        (lambda case: setattr(case, "key", case.key.mT.contiguous().mT), "sdpa"),
        (lambda case: setattr(case, "value", torch.randn(1, 2, 40, 20)), "sdpa"),
    ],
    ids=["as it is", "gradients", "elements apart", "another head"],
)
def test_what_a_call_gets(change, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the tensors tell: those that are not served go to torch without a word."""
    skip_without_library()
    if not attention_library().vectors:
        pytest.skip("chosen only where the processor has AVX2")
    served: list[str] = []
    monkeypatch.setattr(AttentionLibrary, "__call__", lambda *given: served.append("native"))
    monkeypatch.setattr(dispatch, "sdpa", lambda *given: served.append("sdpa"))
    case = make_case(kv_heads=2, groups=2, columns=40)
    change(case)
    case.run("auto")
    assert served == [kernel]


@pytest.mark.parametrize(("kind", "blocks"), [(Processor.USUAL, False), (Processor.AMX, False), (Processor.AMX, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_call_gets_what_is_explained(
    dtype: torch.dtype, kind: Processor, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both say the same of every shape, the one in words."""
    skip_without_library()
    served: list[str] = []
    monkeypatch.setattr(dispatch, "processor", lambda: kind)
    monkeypatch.setattr(attention_library(), "blocks", blocks)
    monkeypatch.setattr(dispatch, "_most_rows", dispatch._most_rows.__wrapped__)
    monkeypatch.setattr(AttentionLibrary, "__call__", lambda *given: served.append("native"))
    for nodes, dim in (
        (1, 32),
        (32, 32),
        (33, 32),
        (40, 32),
        (8, 128),
        (9, 128),
        (200, 32),
        (2, 20),
        (2, 256),
        (2, 264),
    ):
        case = make_case(kv_heads=2, groups=2, nodes=nodes, dim=dim, columns=300, prefix=300)
        query, key, value = (x.to(dtype) for x in (case.query, case.key, case.value))
        served.clear()
        dispatch.tree_attention(query, key, value, prefix=300, bias=None, scale=1.0)
        said = explain(query.shape, key.shape, dtype=dtype)
        assert bool(served) == said.startswith("native: "), said


def test_without_torchs_threads_it_is_chosen_for_one_only(
    cache: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    monkeypatch.setattr(attention_library, "found", None)
    monkeypatch.setattr(building, "torch_openmp", lambda: None)
    if not attention_library().vectors:
        pytest.skip("chosen only where the processor has AVX2")
    torch.set_num_threads(2)
    assert "would use one of 2 threads" in explain(*SHAPES)
    make_case(groups=3, columns=900, dim=64).check()
    torch.set_num_threads(1)
    assert explain(*SHAPES).startswith("native: ")


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_it_runs_on_torchs_own_threads() -> None:
    """No second OpenMP is loaded, and as many threads exist as torch was told, before torch itself has started any."""
    skip_without_library()
    if building.torch_openmp() is None:
        pytest.skip("torch came without a GNU OpenMP")
    assert attention_library().threads
    program = """
import os, re, torch
from specplug_kernels import tree_attention
from specplug_kernels.native.attention_library import attention_library

def runtimes():
    return {p for p in re.findall(r"/\\S+", open("/proc/self/maps").read()) if re.search("gomp|iomp|libomp", p)}

def threads(count):
    torch.set_num_threads(count)
    key = torch.zeros(1, 1, 4096, 64)
    tree_attention(torch.zeros(1, 1, 1, 64), key, key, prefix=4096, bias=None, scale=1.0, kernel="native")
    return len(os.listdir("/proc/self/task"))

before, alone = runtimes(), len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
assert not isinstance(attention_library(), str)
print(threads(1) - alone, threads(3) - alone, threads(3) - alone, runtimes() == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2", "2", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages with Linux's mprotect")
def test_nothing_behind_a_cache_is_read() -> None:
    """Keys and values that end where a page ends."""
    skip_without_library()
    run_guarded("""
from specplug_kernels import tree_attention, tree_attention_reference

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for columns in (1, 3, 21):
        for nodes in (1, 2, 4, 8):
            key, value = (torch.randn(1, 1, columns, 40).to(dtype) for _ in range(2))
            query, bias = torch.randn(1, 1, nodes, 40).to(dtype), torch.zeros(1, 1, nodes, columns, dtype=dtype)
            given = dict(prefix=0, scale=0.3)
            ours = tree_attention(at_the_end(query), at_the_end(key), at_the_end(value), bias=at_the_end(bias), kernel="native", **given)
            torch.testing.assert_close(ours, tree_attention_reference(query, key, value, bias=bias, **given), atol=1e-2, rtol=1e-2)
""")
