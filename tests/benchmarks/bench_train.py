"""Time of a training step at the paper's sizes: our way against the way of research code.

The same as `siserve bench train`, beside the other benchmarks.

    python tests/benchmarks/bench_train.py --data DIR [--rounds 5] [--json]
"""

from __future__ import annotations

import sys

from siserve.cli import run

if __name__ == "__main__":
    sys.exit(run(["bench", "train", *sys.argv[1:]]))
