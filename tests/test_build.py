"""What is built, from what, and what happens when it cannot be."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path

import pytest

from fusepass import progress
from fusepass.ir import DType, Epilogue, Z
from fusepass.ir.epilogue import MAX_NUMBERS, MAX_OPERANDS, MAX_OUTPUTS
from fusepass.kernels import library, pointwise
from fusepass.kernels.build import build, cache, toolchain
from fusepass.kernels.calls import MAX_WEIGHTS
from fusepass.kernels.plan.problem import BFLOAT16

NVCC = toolchain.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(folder))
    cache._warn_unusable.cache_clear()
    return folder


def test_failed_build_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise toolchain.BuildError("no")

    with pytest.raises(toolchain.BuildError):
        cache.entry("k-1", fail)
    assert [p.name for p in root.iterdir()] == [".lock-k-1"]


_RESOURCES = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.fixture
def fake_nvcc(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvcc that writes its arguments to the output."""
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(home))
    _write_nvcc(nvcc, 'echo "$@" > "${@: -1}"; echo "' + _RESOURCES + '"')
    return nvcc


def _write_nvcc(nvcc: Path, body: str) -> None:
    toolchain.version_of.cache_clear()
    nvcc.write_text(
        f'#!/bin/bash\nif [ "$1" = --version ]; then echo "nvcc {body}"; exit; fi\n{body}\n'
    )
    nvcc.chmod(0o755)


def test_cubin_is_named_by_what_makes_it(fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(**defines: object) -> Path:
        return build.build_cubin("pointwise/pointwise.cu", defines, "90a")

    plain = make(TILE=128, PREACT=True)
    arguments = plain.read_text().split()
    assert {"-DTILE=128", "-DPREACT", build.gencode("90a"), "-cubin"} < set(arguments)
    assert make(PREACT=True, TILE=128) == plain
    assert make(TILE=64) != plain
    assert build.build_cubin("pointwise/pointwise.cu", {}, "80") != build.build_cubin(
        "pointwise/pointwise.cu", {}, "90a"
    )
    _write_nvcc(fake_nvcc, 'echo newer > "${@: -1}"; echo "' + _RESOURCES + '"')
    assert make(TILE=128, PREACT=True) != plain
    same = make(TILE=128, PREACT=True)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-use_fast_math")
    assert make(TILE=128, PREACT=True) != same
    assert build.build_cubin(
        "pointwise/pointwise.cu", {}, "90a", "// a program"
    ) != build.build_cubin("pointwise/pointwise.cu", {}, "90a", "// another")
    several = [("pointwise/pointwise.cu", {"TILE": i}, "90a") for i in range(4)]
    assert len(set(build.build_cubins(several))) == 4


def test_several_kernels_are_compiled_at_once(
    fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compilation waits until the other one has begun."""
    met = f'touch {tmp_path}/begun.$$; for i in $(seq 200); do [ -n "$(ls {tmp_path}/begun.* | '
    met += 'sed -n 2p)" ] && break; sleep 0.05; done; [ $i -lt 200 ] || exit 1'
    _write_nvcc(fake_nvcc, f'{met}; echo x > "${{@: -1}}"; echo "{_RESOURCES}"')
    monkeypatch.setattr(build.os, "cpu_count", lambda: 2)
    assert (
        len(build.build_cubins([("pointwise/pointwise.cu", {"TILE": i}, "90a") for i in range(2)]))
        == 2
    )


def test_a_build_says_what_it_does_and_how_long_it_took(
    fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.2)
    _write_nvcc(fake_nvcc, f'sleep 0.6; echo x > "${{@: -1}}"; echo "{_RESOURCES}"')
    build.build_cubin("pointwise/pointwise.cu", {}, "90a")
    told = capsys.readouterr().err
    assert told.startswith("fusepass: compiling pointwise.cu for sm_90a ...\n")
    assert re.search(r"\nfusepass: compiling pointwise.cu for sm_90a: [01]\.\d s *\n$", told)
    build.build_cubin("pointwise/pointwise.cu", {}, "90a")
    assert capsys.readouterr().err == ""  # it is there


def test_source_hash_sees_included_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "a.cu").write_text('#include "b.h"\n#include <vector>\n')
    hashes = set()
    for text in ("1", "2", '#include "c.h"'):
        (tmp_path / "b.h").write_text(text)
        (tmp_path / "c.h").write_text("3")
        build.source_hash.cache_clear()
        hashes.add(build.source_hash("a.cu"))
    (tmp_path / "c.h").write_text("4")
    build.source_hash.cache_clear()
    hashes.add(build.source_hash("a.cu"))
    build.source_hash.cache_clear()
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'pointwise.cu(7): error: boom' >&2; exit 2", r"status 2(.|\n)*error: boom"),
        ("echo '0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads'", "spilled"),
        ("echo '16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads'", "stack frame"),
        ("true", "reported no resources"),
    ],
)
def test_compiler_errors_surface(fake_nvcc: Path, body: str, message: str) -> None:
    _write_nvcc(fake_nvcc, body)
    with pytest.raises(toolchain.BuildError, match=message):
        build.build_cubin("pointwise/pointwise.cu", {}, "90a")


def test_without_nvcc_what_is_built_is_used(
    fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build.build_cubin("pointwise/pointwise.cu", {}, "90a")
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    assert build.build_cubin("pointwise/pointwise.cu", {}, "90a") == built
    with pytest.raises(toolchain.BuildError, match="pip install nvidia-cuda-nvcc"):
        build.build_cubin("pointwise/pointwise.cu", {"TILE": 1}, "90a")


def test_toolkit_of_an_nvcc_that_is_a_script(
    fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.symlink_to(fake_nvcc)
    monkeypatch.delenv("CUDA_HOME")
    (fake_nvcc.parent.parent / "include").mkdir()
    (fake_nvcc.parent.parent / "include" / "cuda_runtime.h").touch()
    assert toolchain.cuda_home(script) == fake_nvcc.parent.parent


def test_a_machine_that_cannot_build_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise toolchain.BuildError("no nvcc: install the CUDA toolkit")

    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(build, "load_binding", fail)
    monkeypatch.setattr(library, "_warned", set())
    with pytest.warns(UserWarning, match="slower: no nvcc"):
        assert library.load() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is False


def test_kernels_that_cannot_be_built_are_told_of_once(
    fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's message names a file of its own each time."""
    _write_nvcc(fake_nvcc, "echo 'a broken header'; exit 1")
    monkeypatch.setattr(library, "_warned", set())
    monkeypatch.setattr(build, "device_arch", lambda device: "80")
    with pytest.warns(UserWarning, match="torch's own operators(.|\n)*a broken header") as told:
        for text in ("gelu", "mul(0.5) silu"):
            assert library.pointwise_kernel(text, BFLOAT16, False, 0, 0) == ("", False, [])
    assert len(told) == 1


# --- the sources --------------------------------------------------------------------------------


def test_kernels_and_programs_agree() -> None:
    constants = (build.SOURCES / "common/gemm.h").read_text()
    assert f"kMaxNumbers = {MAX_NUMBERS};" in constants
    assert f"kMaxOperands = {MAX_OPERANDS['$']};" in constants
    for kind in ("col", "row", "mat"):
        assert f"kMaxVectors = {MAX_OPERANDS[kind]};" in constants
    assert f"kMaxOutputs = {MAX_OUTPUTS};" in constants
    assert f"kMaxWeights = {MAX_WEIGHTS};" in constants


def test_what_the_binding_is_told_of_a_program() -> None:
    """In the order of ``fusepass::_describe``."""
    text = "mul($0) mul(col0:f32) gelu mul(z1), mat1:bool store:bool, z, mul(2.0) col_sum"
    told = library.describe(text, BFLOAT16, False)
    assert told == (
        text, text, False, True, [1, 1, 0, 2], [0, 2, 4], [2, 4, 2, 2],
        [False, False, False, True], [0, 0, 1, 0], [2.0], 0,
    )  # fmt: skip
    chain = "mul(0.5) clamp(-2.0, 2.0)"
    for given in ((f"{chain}, z", False), (chain, True)):
        text, planned, preact, *rest = library.describe(given[0], BFLOAT16, given[1])
        assert (planned, preact) == (chain, True) and Epilogue.parse(text).outputs[1].value == Z
        assert rest == [False, [0] * 4, [], [2, 2], [False] * 2, [0, 1], [0.5, -2.0, 2.0], 0]


def _archs() -> list[str]:
    if NVCC is None:
        return ["80", "90a", "newest"]
    listed = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout
    newest = max(int(n) for n in re.findall(r"compute_(\d+)\b", listed))
    return ["80", "90a", str(newest)]


each_dtype = pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32, DType.F64])
each_numerics = pytest.mark.parametrize("bitwise", [False, True])


@pytest.mark.sampled(4)
@needs_nvcc
@pytest.mark.parametrize("arch", _archs())
@each_dtype
@each_numerics
def test_pointwise_kernel_compiles(
    monkeypatch: pytest.MonkeyPatch, root: Path, dtype: DType, arch: str, bitwise: bool
) -> None:
    """Without a warning, by either numerics."""
    flags = (*build._CUBIN_FLAGS, "-Werror", "all-warnings")
    monkeypatch.setattr(build, "_CUBIN_FLAGS", flags)
    epilogue = Epilogue.parse("mul($0) div(3.0) clamp(-1.0, $1) gelu")
    cubin, _ = pointwise.build(epilogue, dtype, bitwise, 0, arch)
    assert cubin.stat().st_size > 3_000


TILES = (
    "mul(col0) add(mat0)",
    "v0 = mul(row0:f32) add(col0); v0 sigmoid mul(mat0) where(mat1:bool, _, 0.0), v0 col_sum:f32, "
    "v0 store:f64, mul(z1) col_sum",
)


@pytest.mark.sampled(4)
@needs_nvcc
@pytest.mark.parametrize("text", [*TILES, "silu mul(z1), gt(0.0) store:bool, store:f16"])
@each_dtype
@each_numerics
def test_pointwise_kernels_of_any_program_compile(
    monkeypatch: pytest.MonkeyPatch, root: Path, text: str, dtype: DType, bitwise: bool
) -> None:
    monkeypatch.setattr(build, "_CUBIN_FLAGS", (*build._CUBIN_FLAGS, "-Werror", "all-warnings"))
    pointwise.build(Epilogue.parse(text), dtype, bitwise, 0, "90a")


@needs_nvcc
def test_pointwise_kernel_of_a_function_with_a_stack_frame(root: Path) -> None:
    """sin reduces large arguments by a table on the stack: slow, and right."""
    cubin, _ = pointwise.build(Epilogue.parse("sin"), DType.F64, False, 0, "90a")
    assert cubin.is_file()
