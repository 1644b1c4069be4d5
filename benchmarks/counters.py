"""What bounds a product of few rows: the device's counters for the op's kernels and torch's.

    python benchmarks/counters.py --only 8192->8192 --out counters.json

Runs itself under Nsight Compute (``ncu``, of the CUDA toolkit), which replays every kernel from
cold caches and reads what the memory moved in its time. The cases are those of few_rows.py; with
each comes the plain read of its weight, ``torch.sum``, and a copy of it by a kernel, ``torch.neg``:
what kernels reach that do nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from beside_bare import head
from few_rows import CASES, Sets

# Their names in a row, of a kernel or summed over those of one call.
METRICS = {
    "us": "gpu__time_duration.sum",
    "read_mb": "dram__bytes_read.sum",
    "written_mb": "dram__bytes_write.sum",
    "memory_busy_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
}
_SCALE = {"us": 1e-3, "read_mb": 1e-6, "written_mb": 1e-6}
_MARKER = "logical_not"  # in the name of the kernel that stands between two calls
_PROFILER = ("ncu", "--csv", "--print-units", "base", "--profile-from-start", "off",
             "--clock-control", "none", "--cache-control", "all")  # fmt: skip


def calls(only: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """What is measured: the case, whose call it is, and the call."""
    for case in CASES:
        if any(text in str(case) for text in only):
            sets = Sets(case)
            first, second = sets.inputs[:2]
            w, to = first[1], torch.empty_like(first[1])
            yield str(case), "bare", lambda s=sets, i=first: s.bare(*i)
            yield str(case), "fusepass", lambda s=sets, i=second: s.fused(*i)
            yield str(case), "sum", w.sum
            yield str(case), "copy", lambda w=w, to=to: torch.neg(w, out=to)


def launch(only: Sequence[str]) -> None:
    """In the profiled process: every call once, behind a kernel that marks where it begins."""
    marker = torch.zeros(32, dtype=torch.bool, device="cuda")
    for _, _, call in calls(only):
        call()  # builds kernels, and takes torch's workspaces
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        marker.logical_not_()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def kernels(lines: Iterable[str]) -> list[list[dict[str, Any]]]:
    """The kernels of each call, of what ncu printed: a list of their names and metrics a call."""
    found: dict[str, dict[str, Any]] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for line in csv.DictReader(line for line in lines if line.startswith('"')):
        kernel = found.setdefault(line["ID"], {"kernel": line["Kernel Name"]})
        if (name := names.get(line["Metric Name"])) is not None:
            kernel[name] = float(line["Metric Value"].replace(",", "")) * _SCALE.get(name, 1)
    by_call: list[list[dict[str, Any]]] = []
    for kernel in found.values():
        if _MARKER in kernel["kernel"]:
            by_call.append([])
        else:
            by_call[-1].append(kernel)
    return by_call


def row(case: str, peer: str, launched: list[dict[str, Any]]) -> dict[str, Any]:
    """A call's kernels together; percentages are those of its longest kernel."""
    longest = max(launched, key=lambda kernel: kernel["us"])
    total = {name: sum(k[name] for k in launched) for name in ("us", "read_mb", "written_mb")}
    moved = total["read_mb"] + total["written_mb"]
    return {
        "case": case,
        "peer": peer,
        **{name: round(value, 3) for name, value in total.items()},
        "tb_per_s": round(moved / total["us"], 3),
        **{n: round(v, 1) for n, v in longest.items() if n not in (*total, "kernel")},
        "kernels": [kernel["kernel"][:90] for kernel in launched],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[""], help="texts of which a case has one")
    parser.add_argument("--commit", help="what is measured, where git does not know")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() or shutil.which("ncu") is None:
        raise SystemExit("benchmarks/counters.py reads a GPU's counters by ncu, and one is missing")
    torch.manual_seed(0)
    if options.launch:
        with torch.no_grad():
            return launch(options.only)
    command = [*_PROFILER, "--metrics", ",".join(METRICS.values())]
    command += [sys.executable, __file__, "--launch", "--only", *options.only]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    with torch.no_grad():
        whose = [(case, peer) for case, peer, _ in calls(options.only)]
    rows = [row(*w, k) for w, k in zip(whose, kernels(printed.splitlines()), strict=True)]
    for r in rows:
        print(
            f"{r['us']:8.2f} us {r['tb_per_s']:5.2f} TB/s {r['memory_busy_percent']:5.1f}% "
            f"{r['peer']:8s} {r['case']}",
            flush=True,
        )
    if options.out:
        result = {**head(options.commit), "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
