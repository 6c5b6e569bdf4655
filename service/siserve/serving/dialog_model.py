"""A served model: from a checked request to its responses, and what GetModel tells about it.

It joins the bundle's text, the limits and the engine; both the servicer and an in-process client
answer through it, so that there is one path from text to response.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from siserve.bundle.context_text import ContextText
from siserve.bundle.errors import BundleError
from siserve.bundle.tensors import CONTEXT_TOKENIZER_FILE, TOKENIZER_FILE
from siserve.bundle.text import Text
from siserve.bundle.verify import Bundle, open_bundle
from siserve.serving.diversity import distinct
from siserve.serving.engine import Engine, EngineOptions, Observer
from siserve.serving.flight import Context, Generation, Job, Row
from siserve.serving.requests import (
    DEFAULT_N,
    GenerationRequest,
    RequestLimits,
    Turn,
    check_request,
)
from siserve.serving.sessions import Device, load_sessions
from siserve.v1 import dialog_pb2

__all__ = ["DialogModel", "load_model"]

_WARM_UP = GenerationRequest(
    turns=(Turn("A", "hello , how are you ?"),),
    responder="B",
    topic=0,
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
    engine: Engine
    limits: RequestLimits
    device: str

    @property
    def full_name(self) -> str:
        """name@version."""
        return self.bundle.manifest.full_name

    @property
    def name(self) -> str:
        """The model's name, without its version."""
        return self.bundle.manifest.name

    def check(self, message: dialog_pb2.GenerateResponsesRequest) -> GenerationRequest:
        """Check every field of a request and fill in what it leaves out.

        Raises:
            InvalidRequest: if a field breaks a limit.
        """
        return check_request(message, self.bundle.manifest, self.limits)

    def submit(self, request: GenerationRequest, deadline: float = float("inf")) -> Job:
        """Hand a request to the engine.

        Args:
            request: one that was checked.
            deadline: time.monotonic() after which nobody waits.

        Returns:
            The job; its `result` is the future generation.

        Raises:
            DeadlinePassed: if nobody waits any more.
            QueueFull: if too many responses wait.
            ShuttingDown: if no more requests are taken.
        """
        job = self._job(request, deadline)
        self.engine.submit(job)
        return job

    def reply(self, seed: int, generation: Generation) -> dialog_pb2.GenerateResponsesResponse:
        """Write down a generation."""
        tokens = [row.tokens for row in generation.rows]
        return dialog_pb2.GenerateResponsesResponse(
            responses=[self._response(row) for row in generation.rows],
            distinct_1=distinct(tokens, 1),
            distinct_2=distinct(tokens, 2),
            seed=seed,
            model=self.bundle.manifest.full_name,
            timings=dialog_pb2.Timings(
                queue_seconds=generation.queue_seconds,
                encode_seconds=generation.encode_seconds,
                decode_seconds=generation.decode_seconds,
            ),
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
        job = self._job(_WARM_UP, float("inf"))
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

    def _job(self, request: GenerationRequest, deadline: float) -> Job:
        window = self.bundle.manifest.limits.context_utterances
        recent = request.turns[-window:]
        encoded = self.context_text.encode_utterances([turn.text for turn in recent])
        context = self.context_text.context_window(
            [(turn.speaker, ids) for turn, ids in zip(recent, encoded, strict=True)],
            request.responder,
            window,
        )
        return Job(
            context=Context(context.utterances, context.floors, request.topic),
            n=request.n,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            diversity=request.diversity,
            deadline=deadline,
        )

    def _response(self, row: Row) -> dialog_pb2.Response:
        return dialog_pb2.Response(
            text=self.text.decode(row.tokens),
            log_prob=row.log_prob,
            num_tokens=len(row.tokens),
            finish_reason=(
                dialog_pb2.FINISH_REASON_STOP if row.ended else dialog_pb2.FINISH_REASON_LENGTH
            ),
        )


def load_model(
    path: Path,
    device: Device,
    threads: int,
    limits: RequestLimits,
    options: EngineOptions,
    observer: Observer,
) -> DialogModel:
    """Check a bundle and load it; start() makes it answer.

    Raises:
        BundleError: if the bundle cannot be trusted or does not hold a dialog model.
        UsageError: if the device cannot be had.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if manifest.task != "dialog":
        raise BundleError(f"{path.name} holds a model of task {manifest.task!r}, expected 'dialog'")
    text = _load_text(bundle)
    context_text = _load_context_text(bundle) or text
    sessions = load_sessions(bundle, device, threads)
    engine = Engine(sessions, manifest, options, observer)
    return DialogModel(bundle, text, context_text, engine, limits, sessions.device)


def _load_text(bundle: Bundle) -> Text:
    manifest = bundle.manifest
    try:
        text = Text.from_file(bundle.file(TOKENIZER_FILE), manifest.limits.utterance_tokens)
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(
            f"{TOKENIZER_FILE} cannot be read ({error}); export the model again", TOKENIZER_FILE
        ) from None
    found = (text.size, text.tokens.start, text.tokens.end)
    expected = (manifest.sizes.vocabulary, manifest.tokens.start, manifest.tokens.end)
    if found != expected:
        raise BundleError(
            f"{TOKENIZER_FILE} has size, <s> and </s> {found}, the manifest says {expected}; "
            "export the model again",
            TOKENIZER_FILE,
        )
    return text


def _load_context_text(bundle: Bundle) -> ContextText | None:
    """Load the tokenizer of the bundle's pretrained context encoder, if it has one."""
    if not bundle.has(CONTEXT_TOKENIZER_FILE):
        return None
    try:
        return ContextText.from_file(bundle.file(CONTEXT_TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(
            f"{CONTEXT_TOKENIZER_FILE} cannot be read ({error}); export the model again",
            CONTEXT_TOKENIZER_FILE,
        ) from None
