"""Shared set-up: every run of the tests compiles and builds into temporary folders of its own."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One folder for a run and all its workers: what the compiler needs once is built once.
_SHARED = "FUSEPASS_TESTS_ROOT"
_IS_OWNER = _SHARED not in os.environ
if _IS_OWNER:
    os.environ[_SHARED] = tempfile.mkdtemp(prefix="fusepass-tests-")
_ROOT = os.environ[_SHARED]
for _name in ("TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "FUSEPASS_CACHE_DIR"):
    # Set before torch is imported: yesterday's artefacts must not be what is tested.
    os.environ[_name] = os.path.join(_ROOT, _name.lower())
# A graph from a cache never meets the pass, so a count of sites would be of an earlier test's.
# The tests of the caches switch them on again in processes of their own.
for _name in ("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"):
    os.environ[_name] = "0"
# Inductor tries in every process whether torch's own headers compile for this CPU's vectors; that
# compiler and torch fit each other is a premise here. Which extensions both know is still tried.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
for _name in ("FUSEPASS", "FUSEPASS_NUMERICS"):
    os.environ.pop(_name, None)
# Workers share the cores: threads of one that wait, spinning, for threads that the others keep off
# them cost four times the time of the arithmetic. The controller runs no test.
_WORKERS = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
if _WORKERS is not None:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(_WORKERS))))

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# An example's time says how busy the machine is, nothing about the code. The same examples in every
# run: a failure is then of the change that is tested; tests/fuzz looks for others.
hypothesis.settings.register_profile("fusepass", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fusepass")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=100, help="random programs of tests/fuzz to run")
    parser.addoption("--fuzz-seed", type=int, default=0, help="the first of them")
    parser.addoption("--every-case", action="store_true", help="those of sampled tests, too")
    parser.addoption("--sample", type=int, help="which cases of sampled tests; the commit says so")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.sample is None:
        config.option.sample = _commit()


def _commit() -> int:
    """A number of the commit that is tested, 0 where there is none: the next one draws anew."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=8", "HEAD"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True).stdout or "0", 16)
    except OSError:
        return 0


def pytest_report_header(config: pytest.Config) -> str:
    which = "all" if config.option.every_case else f"those of --sample {config.option.sample}"
    return f"cases of sampled tests: {which}"


def pytest_unconfigure() -> None:
    if _IS_OWNER:
        shutil.rmtree(_ROOT, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-case"):
        _sample(config, items)
    cuda = torch.cuda.is_available()
    hopper = cuda and torch.cuda.get_device_capability() == (9, 0)
    for item in items:
        if item.get_closest_marker("gpu") and not cuda:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("hopper") and not hopper:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device of capability 9.0"))


def _sample(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the cases of a ``sampled`` test that its mark says, evenly spread over all of them."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("gpu"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left = set[pytest.Item]()
    for some in cases.values():
        mark = some[0].get_closest_marker("sampled")
        assert mark is not None
        one_in = min(mark.args[0], len(some))
        first = config.option.sample % one_in
        left |= {item for i, item in enumerate(some) if i % one_in != first}
    if left:
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]


def pytest_collection_finish() -> None:
    # What is there by now stays to the end, half a million objects, and compiling makes many more:
    # to look through them for garbage as often as Python does by default took a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or libraries that count their objects at the end report leaks


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> None:
    """No compiled graph, counter or seed of one test is seen by the next; its seed is its name."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file that holds the test module's MODEL, as the command line takes one."""
    file = tmp_path / "model.py"
    file.write_text(request.module.MODEL)
    return str(file)


@pytest.fixture(scope="session")
def host_compiler() -> str:
    """The C++ compiler. Nothing is skipped without one: torch.compile needs it on a CPU, too."""
    from fusepass.kernels.build import toolchain

    compiler = toolchain.host_compiler()
    assert compiler is not None, "the tests need a C++ compiler: install g++, or set CXX"
    return compiler


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For loops over tiny tensors: on a busy machine threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Whatever the plan of a GEMM is asked, ours is faster; what it was asked."""
    from fusepass.kernels import library

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(library, "chosen", lambda *problem: asked.append(problem) or True)
    return asked


@pytest.fixture
def pairs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of every dtype are had there, where the pass itself leaves two products apart."""
    from fusepass.rewrite import decision

    monkeypatch.setattr(decision, "_ON_THE_CPU", None)


@pytest.fixture
def sums_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are had there, where the pass itself leaves sums over rows to Inductor."""
    from fusepass.rewrite import decision

    monkeypatch.setattr(decision, "_SUMS_ON_THE_CPU", None)
