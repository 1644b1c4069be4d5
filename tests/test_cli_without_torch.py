"""The command line where torch is not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_without_torch_one_sentence_says_so(tmp_path: Path) -> None:
    """Of every command, in an environment that has none, and where it is broken."""
    root = Path(__file__).parents[1]
    requires = re.search(r'"(torch>=[\d.]+)"', (root / "pyproject.toml").read_text())
    assert requires is not None
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    for command in ("demo", "explain m.py", "doctor", "build", "bench"):
        for path, words in ((root, "is not installed"), (tmp_path, "cannot be imported (libcud")):
            env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(path)])}
            arguments = [python, "-m", "fusepass", *command.split()]
            done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (1, "")
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"python -m fusepass: torch {words}")
            assert f"{python} -m pip install" in line and line.endswith(f"'{requires[1]}'")
