"""Ask without a server: the embedded model, or any bundle, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from siserve.client.answer import Answer
from siserve.serving.engine import EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models, embedded_bundle
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement
from siserve.v1 import dialog_pb2

__all__ = ["InProcess"]


class InProcess:
    """Answers as a server would, by the same code, for the same seed the same responses.

    Args:
        bundle: folder of a bundle; None = the embedded one.

    Raises:
        SiserveError: if the bundle cannot be loaded.
    """

    def __init__(self, bundle: Path | None = None) -> None:
        """Load and warm up the model."""
        model = load_model(
            bundle or embedded_bundle(),
            Placement("cpu"),
            RequestLimits(),
            EngineOptions(),
            Metrics().engine_observer(),
        )
        self._models = Models([model])
        model.start()

    def __enter__(self) -> InProcess:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the engine."""
        self._models.default.stop()

    def send(self, request: dialog_pb2.GenerateResponsesRequest) -> Answer:
        """Answer a request.

        Raises:
            RequestError: as the server would refuse it.
        """
        started = time.perf_counter()
        model = self._models.find(request.model)
        job = model.submit(model.check(request))
        message = model.reply(job.seed, job.result.result())
        return Answer.from_message(message, time.perf_counter() - started)
