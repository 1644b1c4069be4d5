"""compute-sanitizer over every configuration of the 16-bit GEMM that the plan can choose.

::

    python tests/gpu/sanitize.py [memcheck racecheck synccheck] [--jobs 8]

Builds what is missing, then runs each configuration once, at a short shape with edges, in so many
processes at once, each under the tool. The exit status is 0 if no tool found anything.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # the exit status of a process in which a tool found something


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tools", nargs="*", default=TOOLS)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if given.share:
        return _run_share(*map(int, given.share.split("/")))
    return _run_tools(given.tools, given.jobs)


def _run_tools(tools: Sequence[str], jobs: int) -> int:
    from operand_cases import cases

    from fusepass import kernels
    from fusepass.kernels.build.build import build_cubins

    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("no compute-sanitizer: it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    assert kernels.load_binding()
    some = cases(1)
    build_cubins([("sm90/gemm_sm90.cu", c.defines(), "90a", c.include) for c in some])
    print(f"{len(some)} kernels", flush=True)
    status = 0
    for tool in tools:
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]
        command += [sys.executable, __file__]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        children = [
            subprocess.Popen(
                [*command, "--share", f"{i}/{jobs}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for i in range(jobs)
        ]
        printed = [child.communicate()[0] for child in children]
        clean = sum(text.count("ran ") for text in printed)
        bad = [t for t, c in zip(printed, children, strict=True) if c.returncode]
        print(f"{tool}: {clean} of {len(some)} ran, {len(bad)} processes with findings", flush=True)
        for text in bad:
            print(text[-3000:])
        status |= bool(bad) or clean < len(some)
    return int(status)


def _run_share(index: int, jobs: int) -> int:
    import torch
    from epilogues import error
    from forced_gemm import guarded
    from operand_cases import call, cases, force, operands_of, reference

    from fusepass import kernels
    from fusepass.kernels.plan import sm90 as plan

    assert kernels.load_binding()
    plan._MIN_M = 1
    for case in cases(1)[index::jobs]:
        rng = random.Random(0)
        m, n, k = 2 * case.config.tile_m + 9, case.config.tile_n + 8, 64 * case.config.split + 72
        x, w = guarded(m, k, case.dtype, rng), guarded(n, k, case.dtype, rng)
        if case.w_is_kn:
            w = w.t().contiguous().t()
        operands = operands_of(case, m, n, rng)
        force(case, m, n, k)
        outs = call(case, x, w, None, operands)
        torch.cuda.synchronize()
        exact = reference(case, x.double() @ w.double().t(), operands)
        worst = max(error(o, e) for o, e in zip(outs, exact, strict=True))
        print(f"ran {case}: {worst:.1e}", flush=True)
        assert worst < 0.02, case
    return 0


if __name__ == "__main__":
    sys.exit(main())
