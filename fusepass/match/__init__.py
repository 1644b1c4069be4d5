"""From a graph's GEMM nodes to epilogues, and why there is none."""
