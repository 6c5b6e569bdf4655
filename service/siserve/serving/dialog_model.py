"""A served model: from a checked request to its responses, and what GetModel tells about it.

It joins the bundle's text, the limits and the engine; both the servicer and an in-process client
answer through it, so that there is one path from text to response.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from siserve.bundle.context_text import ContextText
from siserve.bundle.errors import BundleError
from siserve.bundle.text import Text
from siserve.bundle.verify import Bundle
from siserve.serving.diversity import distinct
from siserve.serving.encoding import Context, Utterance
from siserve.serving.engine import AnyEngine
from siserve.serving.flight import Generation, Job, Row, Variation
from siserve.serving.given import ScoreRequest, check_score_request, check_variation
from siserve.serving.requests import (
    DEFAULT_N,
    Dialog,
    GenerationRequest,
    RequestLimits,
    Turn,
    check_request,
)
from siserve.serving.scoring import ScoreJob, Scores
from siserve.v1 import dialog_pb2

__all__ = ["DialogModel"]

_STOP, _LENGTH = dialog_pb2.FINISH_REASON_STOP, dialog_pb2.FINISH_REASON_LENGTH
#: Texts whose ids are kept, and characters of the longest of them.
_MOST_TEXTS, _SHORT_TEXT = 2048, 256
_WARM_UP = GenerationRequest(
    dialog=Dialog((Turn("A", "hello , how are you ?"),), "B"),
    n=DEFAULT_N,
    seed=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    max_tokens=4,
)


@dataclass(frozen=True, eq=False)
class DialogModel:
    """One model of the server.

    Attributes:
        text: of responses.
        context_text: of contexts, the same unless their encoder has a tokenizer of its own.
    """

    bundle: Bundle
    text: Text
    context_text: Text | ContextText
    engine: AnyEngine
    limits: RequestLimits
    device: str
    precision: str

    @property
    def full_name(self) -> str:
        """name@version."""
        return self.bundle.manifest.full_name

    @property
    def name(self) -> str:
        """The model's name, without its version."""
        return self.bundle.manifest.name

    def check_variation(self, message: dialog_pb2.VaryResponseRequest) -> Variation:
        """Check the response to vary; the rest of the request is for `check`.

        Raises:
            InvalidRequest: if a field breaks a limit.
        """
        return check_variation(message, self.text, self.limits)

    def check_scores(self, message: dialog_pb2.ScoreResponsesRequest) -> ScoreRequest:
        """Check every field of a request for scores.

        Raises:
            InvalidRequest: if a field breaks a limit.
        """
        return check_score_request(message, self.bundle.manifest, self.text, self.limits)

    def submit_scores(self, request: ScoreRequest, deadline: float = float("inf")) -> ScoreJob:
        """Hand a request for scores to the engine; raises what `submit` does."""
        job = ScoreJob(
            context=self._context(request.dialog),
            responses=request.responses,
            num_samples=request.num_samples,
            num_aux=request.num_aux,
            seed=_seed(request.seed),
            deadline=deadline,
        )
        self.engine.submit(job)
        return job

    def check(self, message: dialog_pb2.GenerateResponsesRequest) -> GenerationRequest:
        """Check every field of a request and fill in what it leaves out.

        Raises:
            InvalidRequest: if a field breaks a limit.
        """
        return check_request(message, self.bundle.manifest, self.limits)

    def submit(
        self,
        request: GenerationRequest,
        deadline: float = float("inf"),
        variation: Variation | None = None,
        on_rows: Callable[[Sequence[tuple[int, Row]]], None] | None = None,
    ) -> Job:
        """Hand a request to the engine.

        Args:
            request: one that was checked.
            deadline: time.monotonic() after which nobody waits.
            variation: a response to draw latents around.
            on_rows: see Job.

        Returns:
            The job; its `result` is the future generation.

        Raises:
            DeadlinePassed: if nobody waits any more.
            QueueFull: if too many responses wait.
            ShuttingDown: if no more requests are taken.
        """
        job = self._job(request)
        job.deadline, job.variation, job.on_rows = deadline, variation, on_rows
        self.engine.submit(job)
        return job

    def reply(self, seed: int, generation: Generation) -> dialog_pb2.GenerateResponsesResponse:
        """Write down a generation."""
        tokens = [row.tokens for row in generation.rows]
        return dialog_pb2.GenerateResponsesResponse(
            responses=[self.response(row) for row in generation.rows],
            distinct_1=distinct(tokens, 1),
            distinct_2=distinct(tokens, 2),
            seed=seed,
            model=self.bundle.manifest.full_name,
            timings=_timings(generation),
        )

    def scores(self, job: ScoreJob, scores: Scores) -> dialog_pb2.ScoreResponsesResponse:
        """Write down estimates."""
        return dialog_pb2.ScoreResponsesResponse(
            scores=[
                dialog_pb2.Score(
                    log_prob=each.log_prob, std_error=each.std_error, num_tokens=len(ids) - 2
                )
                for each, ids in zip(scores.estimates, job.responses, strict=True)
            ],
            estimator=(
                dialog_pb2.ESTIMATOR_IMPORTANCE
                if scores.by_posterior
                else dialog_pb2.ESTIMATOR_PRIOR
            ),
            num_samples=job.num_samples,
            num_aux=job.num_aux,
            seed=job.seed,
            model=self.full_name,
            timings=_timings(scores),
        )

    def describe(self) -> dialog_pb2.GetModelResponse:
        """Tell what the model is and which limits hold."""
        manifest, limits = self.bundle.manifest, self.limits
        return dialog_pb2.GetModelResponse(
            name=manifest.name,
            version=manifest.version,
            method=manifest.method,
            created=manifest.created,
            sha256=manifest.sha256,
            device=self.device,
            precision=self.precision,
            num_parameters=manifest.sizes.num_parameters,
            vocabulary_size=manifest.sizes.vocabulary,
            context_utterances=manifest.limits.context_utterances,
            topics=manifest.features.topics,
            limits=dialog_pb2.RequestLimits(
                max_responses=limits.max_responses,
                max_turns=limits.max_turns,
                max_text_bytes=limits.max_text_bytes,
                max_name_bytes=limits.max_name_bytes,
                max_tokens=limits.tokens_of(manifest),
                max_score_samples=limits.max_score_samples,
            ),
            defaults=dialog_pb2.SamplingDefaults(
                temperature=manifest.sampling.temperature,
                top_k=manifest.sampling.top_k,
                top_p=manifest.sampling.top_p,
                max_tokens=min(manifest.sampling.max_tokens, limits.tokens_of(manifest)),
                n=min(DEFAULT_N, limits.max_responses),
            ),
            metrics=manifest.metrics,
        )

    def start(self) -> None:
        """Start the engine and run one request through it, so that the first user finds it warm.

        Raises:
            BundleError: if that request fails.
        """
        self.engine.start()
        request = _WARM_UP
        if self.bundle.manifest.task == "lm":  # which says sentences without a context
            request = request._replace(dialog=Dialog((), ""))
        job = self._job(request)
        try:
            self.engine.submit(job).result()
        except Exception as error:  # whatever a graph raises
            self.engine.stop()
            raise BundleError(
                f"{self.full_name} fails on its first request ({error}); export the model again"
            ) from None

    def stop(self, finish: bool = True) -> None:
        """Stop the engine; see Engine.stop."""
        self.engine.stop(finish)

    def _context(self, dialog: Dialog) -> Context:
        window = self.bundle.manifest.limits.context_utterances
        recent = dialog.turns[-window:]
        context = self.context_text.context_window(
            [(speaker, self._encode(text)) for speaker, text in recent], dialog.responder, window
        )
        return Context(context.utterances, context.floors, dialog.topic)

    def _encode(self, text: str) -> Utterance:
        if len(text) > _SHORT_TEXT:
            return self.context_text.encode_utterances([text])[0]
        return self._ids_of(text)

    @cached_property
    def _ids_of(self) -> Callable[[str], Utterance]:
        """Ids of the texts that came last: a dialog that goes on brings its turns again.

        It does not hold the model, or both would hold each other, and a retired model's memory.
        """
        context_text = self.context_text
        return lru_cache(_MOST_TEXTS)(lambda text: context_text.encode_utterances([text])[0])

    def _job(self, request: GenerationRequest) -> Job:
        return Job(
            context=self._context(request.dialog),
            n=request.n,
            seed=_seed(request.seed),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            diversity=request.diversity,
        )

    def response(self, row: Row) -> dialog_pb2.Response:
        """Write down one response."""
        return dialog_pb2.Response(
            text=self.text.decode(row.tokens),
            log_prob=row.log_prob,
            num_tokens=len(row.tokens),
            finish_reason=_STOP if row.ended else _LENGTH,
        )


def _seed(asked: int | None) -> int:
    return secrets.randbits(63) if asked is None else asked


def _timings(done: Generation | Scores) -> dialog_pb2.Timings:
    return dialog_pb2.Timings(
        queue_seconds=done.queue_seconds,
        encode_seconds=done.encode_seconds,
        decode_seconds=done.decode_seconds,
    )
