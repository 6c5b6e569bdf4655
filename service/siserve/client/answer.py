"""What a caller gets: the responses to one context, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from siserve.v1 import dialog_pb2

__all__ = ["Answer", "Reply", "Score", "Timings", "make_request", "make_score_request"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Reply:
    """One response.

    Attributes:
        text: what it says.
        log_prob: natural log probability given its latent.
        num_tokens: its length, the end mark not counted.
        finish_reason: "stop" if the model ended it, "length" if it was cut at max_tokens.
    """

    text: str
    log_prob: float
    num_tokens: int
    finish_reason: FinishReason

    @classmethod
    def from_message(cls, message: dialog_pb2.Response) -> Reply:
        """Read one response of the service."""
        ended = message.finish_reason == dialog_pb2.FINISH_REASON_STOP
        return cls(
            message.text, message.log_prob, message.num_tokens, "stop" if ended else "length"
        )


@dataclass(frozen=True)
class Score:
    """What a response is worth to the model.

    Attributes:
        log_prob: estimate of log p(x|c), in nats.
        std_error: what the number of samples leaves in it, in nats.
        num_tokens: length of the response, the end mark not counted.
    """

    log_prob: float
    std_error: float
    num_tokens: int

    @classmethod
    def all_of(cls, message: dialog_pb2.ScoreResponsesResponse) -> tuple[Score, ...]:
        """Read a reply of the service, one score a response."""
        return tuple(cls(s.log_prob, s.std_error, s.num_tokens) for s in message.scores)


@dataclass(frozen=True)
class Timings:
    """Where the server's time went."""

    queue_seconds: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Answer:
    """All responses to one context.

    Attributes:
        responses: in the order of their latents; with diversity in the order of choice.
        distinct_1: share of different words among all words of the responses.
        distinct_2: share of different pairs of words.
        seed: repeats this answer.
        model: name@version of the model that answered.
        timings: of the server.
        latency_seconds: from the call to the answer, as the caller saw it.
    """

    responses: tuple[Reply, ...]
    distinct_1: float
    distinct_2: float
    seed: int
    model: str
    timings: Timings
    latency_seconds: float

    @classmethod
    def from_message(
        cls, message: dialog_pb2.GenerateResponsesResponse, latency_seconds: float
    ) -> Answer:
        """Read a reply of the service."""
        return cls(
            responses=tuple(map(Reply.from_message, message.responses)),
            distinct_1=message.distinct_1,
            distinct_2=message.distinct_2,
            seed=message.seed,
            model=message.model,
            timings=Timings(
                message.timings.queue_seconds,
                message.timings.encode_seconds,
                message.timings.decode_seconds,
            ),
            latency_seconds=latency_seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts, ready for JSON."""
        return asdict(self)


def make_request(
    context: Sequence[tuple[str, str]],
    *,
    n: int | None = None,
    seed: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    diversity: float | None = None,
    responder: str = "",
    topic: str = "",
    model: str = "",
) -> dialog_pb2.GenerateResponsesRequest:
    """Make a request; None leaves an option to the server.

    Raises:
        ValueError: if a number does not fit its field.
    """
    return dialog_pb2.GenerateResponsesRequest(
        context=[dialog_pb2.Utterance(speaker=speaker, text=text) for speaker, text in context],
        n=n,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_tokens=max_tokens,
        diversity=diversity,
        responder=responder,
        topic=topic,
        model=model,
    )


def make_score_request(
    context: Sequence[tuple[str, str]],
    responses: Sequence[str],
    *,
    num_samples: int | None = None,
    num_aux: int | None = None,
    seed: int | None = None,
    responder: str = "",
    topic: str = "",
    model: str = "",
) -> dialog_pb2.ScoreResponsesRequest:
    """Make a request for scores; None leaves an option to the server.

    Raises:
        ValueError: if a number does not fit its field.
    """
    return dialog_pb2.ScoreResponsesRequest(
        context=[dialog_pb2.Utterance(speaker=speaker, text=text) for speaker, text in context],
        responses=responses,
        num_samples=num_samples,
        num_aux=num_aux,
        seed=seed,
        responder=responder,
        topic=topic,
        model=model,
    )
