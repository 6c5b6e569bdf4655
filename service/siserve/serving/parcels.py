"""Jobs, results and errors as what a Link carries: lists of numbers and text, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from siserve.bundle.context_text import ContextText
from siserve.bundle.manifest import parse_manifest
from siserve.bundle.text import Text
from siserve.bundle.verify import Bundle
from siserve.serving import errors
from siserve.serving.dialog_model import DialogModel
from siserve.serving.encoding import Context
from siserve.serving.engine import AnyEngine
from siserve.serving.errors import InvalidRequest, RequestError, TryLater
from siserve.serving.flight import Generation, Job, Row, Variation
from siserve.serving.jobs import AnyJob
from siserve.serving.requests import RequestLimits
from siserve.serving.scoring import Estimate, ScoreJob, Scores

__all__ = [
    "Parcel",
    "pack_error",
    "pack_job",
    "pack_model",
    "pack_result",
    "unpack_error",
    "unpack_job",
    "unpack_model",
    "unpack_result",
    "unpack_rows",
]

Parcel = Sequence[Any]

_OF_GENERATION = ("n", "seed", "temperature", "top_k", "top_p", "max_tokens", "diversity")
_OF_SCORES = ("num_samples", "num_aux", "seed")


def pack_job(job: AnyJob) -> Parcel:
    """Write down a job: who waits for it and how stays behind, but for the deadline.

    Times are of time.monotonic(), which is one clock for all processes of a machine.
    """
    context = job.context
    dialog = (context.utterances, context.floors, context.topic)
    if isinstance(job, ScoreJob):
        return (dialog, job.deadline, [getattr(job, name) for name in _OF_SCORES], job.responses)
    varied = job.variation and (job.variation.response, job.variation.noise_scale)
    facts = [getattr(job, name) for name in _OF_GENERATION]
    return (dialog, job.deadline, facts, varied, job.on_rows is not None)


def unpack_job(parcel: Parcel) -> tuple[AnyJob, bool]:
    """Read a job, and whether its responses are to be told as they complete."""
    (utterances, floors, topic), deadline, facts, *rest = parcel
    context = Context(tuple(map(tuple, utterances)), tuple(floors), topic)
    if len(rest) == 1:
        scored = dict(zip(_OF_SCORES, facts, strict=True))
        responses = tuple(map(tuple, rest[0]))
        return ScoreJob(context=context, responses=responses, deadline=deadline, **scored), False
    varied, is_told = rest
    variation = Variation(tuple(varied[0]), varied[1]) if varied else None
    given = dict(zip(_OF_GENERATION, facts, strict=True))
    return Job(context=context, variation=variation, deadline=deadline, **given), is_told


def pack_result(result: Generation | Scores) -> Parcel:
    """Write down what came of a job."""
    seconds = (result.queue_seconds, result.encode_seconds, result.decode_seconds)
    if isinstance(result, Generation):
        return (seconds, result.rows)
    return (
        seconds,
        [(each.log_prob, each.std_error) for each in result.estimates],
        result.by_posterior,
    )


def unpack_result(parcel: Parcel) -> Generation | Scores:
    """Read what came of a job."""
    seconds, found, *rest = parcel
    if not rest:
        return Generation(tuple(map(_row, found)), *seconds)
    return Scores(tuple(Estimate(*each) for each in found), rest[0], *seconds)


def unpack_rows(parcel: Parcel) -> list[tuple[int, Row]]:
    """Read responses that are complete, with their indices."""
    return [(index, _row(row)) for index, row in parcel]


def pack_error(error: BaseException) -> Parcel:
    """Write down why there is no result."""
    if isinstance(error, InvalidRequest):
        return (type(error).__name__, error.field, error.problem)
    if isinstance(error, TryLater):
        return (type(error).__name__, error.problem, error.retry_after_s)
    if isinstance(error, RequestError):
        return (type(error).__name__, str(error))
    return ("", f"{type(error).__name__}: {error}")


def unpack_error(parcel: Parcel) -> Exception:
    """Read why there is no result; what is no RequestError was told in the log where it arose."""
    name, *told = parcel
    if name not in errors.__all__:
        return RuntimeError(*told)
    return cast("RequestError", getattr(errors, name)(*told))


def pack_model(model: DialogModel) -> Parcel:
    """Write down what checking, reading and writing text takes of a model; no graph."""
    context_text = model.context_text
    return (
        model.bundle.manifest.to_bytes().decode(),
        model.text.to_json(),
        context_text.to_json() if isinstance(context_text, ContextText) else None,
        model.device,
        model.precision,
        str(model.bundle.path),
    )


def unpack_model(parcel: Parcel, engine: AnyEngine, limits: RequestLimits) -> DialogModel:
    """Make a model that has its jobs decoded by an engine elsewhere."""
    manifest, text, context_text, device, precision, path = parcel
    bundle = Bundle(Path(path), parse_manifest(manifest.encode()))
    words = Text.from_json(text, bundle.manifest.limits.utterance_tokens)
    return DialogModel(
        bundle,
        words,
        words if context_text is None else ContextText.from_json(context_text),
        engine,
        limits,
        device,
        precision,
    )


def _row(told: Parcel) -> Row:
    tokens, log_prob, ended = told
    return Row(tuple(tokens), log_prob, ended)
