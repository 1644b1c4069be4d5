"""Clock and power of the GPU while something runs."""

from __future__ import annotations

import shutil
import statistics
import subprocess

import torch

_QUERY = "--query-gpu=clocks.sm,power.draw.instant"
_EVERY_MS = 50
_SETTLING = 4  # readings: of before, and of a clock that still changes


class Meter:
    """Asks nvidia-smi, if there is one, again and again until it is left.

    Example:
        >>> with Meter() as meter:
        ...     pass  # work for the device
        >>> mhz, watts = meter.means()
    """

    def __enter__(self) -> Meter:
        self._lines: list[str] = []
        self._process = None
        if tool := shutil.which("nvidia-smi"):
            device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            command = [tool, "-i", f"GPU-{device}", _QUERY, "--format=csv,noheader,nounits"]
            command += ["-lms", str(_EVERY_MS)]
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._lines = self._process.communicate()[0].splitlines()

    def means(self) -> tuple[float | None, float | None]:
        """MHz of the multiprocessors and watts of the board; None where nothing told them."""
        readings = [line.split(", ") for line in self._lines]
        whole = [r for r in readings if len(r) == 2 and r[0].isdigit()][_SETTLING:]
        if not whole:
            return None, None
        mhz = statistics.mean(float(clock) for clock, _ in whole)
        watts = [float(power) for _, power in whole if power[0].isdigit()]
        return round(mhz), round(statistics.mean(watts)) if watts else None
