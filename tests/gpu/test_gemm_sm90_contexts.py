"""The 16-bit GEMM on Hopper under streams, CUDA graphs, threads and on a second device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from forced_gemm import CHAIN, NAN, SIMPLE, Runner, build
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    build([(SIMPLE, False), (SIMPLE, True)])


def simple(m: int = 520) -> list[Tensor]:
    sizes = ((m, 328), (400, 328), (400,))
    return [torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in sizes]


def test_another_stream(run: Runner) -> None:
    x, w, b = simple()
    (wanted,) = run(SIMPLE, x, w, b)
    late, stream = torch.zeros_like(x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        out = torch.ops.fusepass.linear(late, w, b, CHAIN, [])
        assert not stream.query(), "the op waited for the device"
    stream.synchronize()
    assert torch.equal(out, wanted)


def test_cuda_graph(run: Runner) -> None:
    x, w, b = simple()
    op = partial(torch.ops.fusepass.linear_with_preact, x, w, b, CHAIN, [])
    run(SIMPLE, x, w, b, with_preact=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op()
    assert len(run.answers) == 1  # nothing was planned in the capture
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        for t in captured:
            t.fill_(NAN)
        graph.replay()
        for got, wanted in zip(captured, op(), strict=True):
            assert torch.equal(got, wanted)


def in_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def one(index: int) -> None:
        try:
            start.wait()
            work(index)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_four_threads(run: Runner) -> None:
    inputs = [simple(300 + 8 * i) for i in range(4)]
    wanted = [run(SIMPLE, *tensors)[0] for tensors in inputs]
    torch.ops.fusepass._forget_plans()  # the threads plan at the same time, too
    torch.cuda.synchronize()

    def work(index: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(50):
                out = torch.ops.fusepass.linear(*inputs[index], CHAIN, [])
            stream.synchronize()
            assert torch.equal(out, wanted[index])

    in_threads(work, 4)
    assert all(answer.startswith(str(SIMPLE.config)) for answer in run.answers)


def test_a_thread_whose_first_call_this_is(run: Runner) -> None:
    """The driver launches, and wants a context that only the runtime brings."""
    tensors = simple()
    (wanted,) = run(SIMPLE, *tensors)
    torch.cuda.synchronize()
    outs: list[Tensor] = []
    in_threads(lambda _: outs.append(torch.ops.fusepass.linear(*tensors, CHAIN, [])), 1)
    torch.cuda.synchronize()
    assert torch.equal(outs[0], wanted)


def test_one_memory_in_many_shapes(run: Runner) -> None:
    """Tensor maps are kept by address and geometry."""
    memory = torch.randn(2, 512 * 1024, device="cuda", dtype=torch.bfloat16) / 16
    for _ in range(2):
        for m, n, k, ld in ((512, 256, 512, 512), (256, 512, 512, 512), (512, 256, 256, 512),
                            (512, 256, 256, 256), (300, 128, 256, 520)):  # fmt: skip
            x, w = (memory[i].as_strided((r, k), (ld, 1)) for i, r in ((0, m), (1, n)))
            (out,) = run(SIMPLE, x, w)
            wanted = torch.nn.functional.gelu((x @ w.t() * 0.5).clamp(-2, 2))
            torch.testing.assert_close(out, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device(run: Runner) -> None:
    tensors = simple()
    (wanted,) = run(SIMPLE, *tensors)
    (out,) = run(SIMPLE, *(t.to("cuda:1") for t in tensors))
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    assert torch.equal(out.cpu(), wanted.cpu())
