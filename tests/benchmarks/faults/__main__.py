"""Break things around running servers, and count what clients saw.

    python -m tests.benchmarks.faults [--only NAME ...] [--scale 1.0] [--minutes 30]
        [--rate CALLS] [--n 5] [--bundle DIR] [--serve "OPTIONS"]

Each trial starts servers of its own, on the embedded model unless --bundle names another, and
prints one line: whether its bar holds, the bar, what was seen. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from siserve.serving.models import embedded_bundle

from .connections import connections, resets
from .files import disk, starts
from .flood import cancels, deadlines, mutations, overload
from .replicas import kill, rolling
from .security import security
from .soak import clock, soak
from .swaps import swaps
from .trial import Setting, Trial

TRIALS: dict[str, Trial] = {
    "rolling": rolling,
    "kill": kill,
    "overload": overload,
    "cancels": cancels,
    "deadlines": deadlines,
    "mutations": mutations,
    "connections": connections,
    "resets": resets,
    "swaps": swaps,
    "disk": disk,
    "starts": starts,
    "clock": clock,
    "security": security,
    "soak": soak,
}


def main() -> int:
    """Run the trials; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.faults")
    parser.add_argument("--only", choices=list(TRIALS), nargs="+", default=list(TRIALS))
    parser.add_argument("--scale", type=float, default=1.0, help="of counts and times")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--rate", type=float, help="of the soak, calls a second; 80 %% of peak")
    parser.add_argument("--n", type=int, default=5, help="responses of a call of the overload")
    parser.add_argument("--bundle", type=Path, help="the embedded one without")
    parser.add_argument("--serve", default="", help="options of every `siserve serve`")
    options = parser.parse_args()
    missed = 0
    for name in options.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="siserve-faults-") as scratch:
            bundle, more = options.bundle or embedded_bundle(), tuple(shlex.split(options.serve))
            numbers = (options.scale, options.minutes)
            setting = Setting(bundle, *numbers, Path(scratch), options.n, more, options.rate)
            verdict = TRIALS[name](setting)
        missed += not verdict.holds
        print(
            f"{name:11} {'holds ' if verdict.holds else 'MISSED'} [{verdict.bar}] {verdict.seen} "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
