"""Which kernel runs a fused call, and why, in words; the choice itself is ``kernels/plan.py``'s."""

from __future__ import annotations

from dataclasses import dataclass

from .calls import Call

HYBRID = "torch's GEMM, then one pointwise kernel"


@dataclass(frozen=True)
class Choice:
    """A kernel and the reason for it.

    Attributes:
        kernel: what runs.
        why: in a clause that reads on from "because".
    """

    kernel: str
    why: str


def choose(call: Call) -> Choice:
    """What runs ``call`` on its own device."""
    if call.device.type == "cpu":
        return Choice(
            "torch's GEMM, then the stages in blocks that stay in cache"
            if call.numerics == "accurate"
            else "torch's own operators, one after the other",
            "it runs on the CPU",
        )
    if call.device.type != "cuda":
        return Choice("torch's own operators", f"there is no kernel for {call.device.type}")
    return Choice(HYBRID, "")
