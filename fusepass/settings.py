"""Every option and environment variable of fusepass, in one place.

Options are passed as ``torch.compile(..., options={"fusepass.numerics": "bitwise"})``; an option
wins over its environment variable. Environment variables are read when a model is compiled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "fusepass."
NUMERICS = ("accurate", "bitwise")

# FUSEPASS unset: only where the backend is named; 1: every torch.compile that uses Inductor;
# 0: kill switch, backend="fusepass" is exactly Inductor.
SWITCH = "FUSEPASS"
NUMERICS_VARIABLE = "FUSEPASS_NUMERICS"


@dataclass(frozen=True)
class Settings:
    """What the user chose for one compile.

    Attributes:
        numerics: ``accurate`` (error against float64 no larger than eager's) or ``bitwise``
            (equal to eager bit for bit).
    """

    numerics: str = "accurate"


def switch() -> str | None:
    """The value of ``FUSEPASS``: None (unset or empty), "0" or "1".

    Raises:
        ValueError: for any other value.
    """
    value = os.environ.get(SWITCH) or None
    if value not in (None, "0", "1"):
        raise ValueError(
            f"{SWITCH}={value!r}: use 1 (fuse every torch.compile), 0 (never) or unset it"
        )
    return value


def split_options(options: Mapping[str, Any] | None) -> tuple[Settings, dict[str, Any]]:
    """Parts the user's ``options=`` into fusepass's settings and Inductor's options.

    Raises:
        RuntimeError: for an unknown ``fusepass.*`` key, as torch does for its own options.
        ValueError: for a value that the option does not take.
    """
    theirs = dict(options or {})
    ours = {key: theirs.pop(key) for key in list(theirs) if key.startswith(PREFIX)}
    known = [PREFIX + "numerics"]
    for key in ours:
        if key not in known:
            raise RuntimeError(f"Unexpected optimization option {key}, known options are {known}")
    numerics = ours.get(known[0], os.environ.get(NUMERICS_VARIABLE) or "accurate")
    if numerics not in NUMERICS:
        source = f"option {known[0]!r}" if known[0] in ours else NUMERICS_VARIABLE
        raise ValueError(f"{source} is {numerics!r}; use one of {', '.join(NUMERICS)}")
    return Settings(numerics), theirs
