"""`siserve serve` that also tells how much of its processor time was spent in the model's graphs.

Whatever runs them: onnxruntime or siserve's own kernels.

    python -m siserve.bench.observed [OPTIONS of siserve serve]

Each line on its standard input is answered by {"cpu", "graphs", "engine"} in seconds on its
standard output: of the process, in runs of graphs, and of the threads that run them, Python
included. What is not in the engine is gRPC and the way in and out. The graphs' time is that of the
thread that runs them and of those that help it; onnxruntime's own threads are not known, so where
it runs graphs this is right with --threads 1 only, whatever the number of workers.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from siserve.serving import cli
from siserve.serving.fused.native import CpuLibrary, cpu_library
from siserve.serving.fused.weights import NotFused
from siserve.serving.sessions import GraphSession

__all__ = ["main"]


class _Graphs:
    """Counts the processor time of every run of a graph."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._threads: dict[int, float] = {}
        self._lock = threading.Lock()

    def watch(self, owner: type, name: str) -> None:
        """Count what a method takes from now on, whoever calls it."""
        method: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any) -> Any:
            started = time.thread_time()
            try:
                return method(*given)
            finally:
                now = time.thread_time()
                with self._lock:
                    self.seconds += now - started
                    self._threads[threading.get_ident()] = now

        setattr(owner, name, counted)

    def usage(self) -> dict[str, float]:
        """Tell the processor time up to now; of the threads up to their last run."""
        helped = 0.0
        with suppress(NotFused):
            helped = cpu_library().helped_seconds()
        with self._lock:
            graphs, engine = self.seconds + helped, sum(self._threads.values()) + helped
            return {"cpu": time.process_time(), "graphs": graphs, "engine": engine}


def main() -> int:
    """Serve; return the exit code."""
    graphs = _Graphs()
    # Of this process alone, which does nothing but be measured.
    graphs.watch(GraphSession, "run")
    for name in ("run", "take_steps", "encode", "draw_prior"):
        graphs.watch(CpuLibrary, name)

    def tell() -> None:
        for _ in sys.stdin:
            print(json.dumps(graphs.usage()), flush=True)

    threading.Thread(target=tell, name="usage", daemon=True).start()
    return cli.run(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
