"""`siserve ask`: one question, several responses; `siserve models`: what a server serves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from siserve.bundle.errors import UsageError
from siserve.command import run_app

__all__ = ["run"]

_app = typer.Typer(add_completion=False, rich_markup_mode=None)

_MAX_SEED = 2**64 - 1


@_app.callback()
def _siserve() -> None:
    """Ask for responses."""


@_app.command()
def ask(
    text: Annotated[str, typer.Argument(help="The last turn of the dialog.")] = "",
    turn: Annotated[
        list[str],
        typer.Option(metavar="SPEAKER:TEXT", help="An earlier turn; repeat it, oldest first."),
    ] = [],  # noqa: B006 (typer copies it)
    n: Annotated[int | None, typer.Option("-n", min=1, help="Number of responses [5].")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=_MAX_SEED, help="Repeats an answer [drawn].")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 = the likeliest word [the model's default].")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Choose among the K likeliest words; 0 = all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among words of this probability; 1 = all.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response.")] = None,
    diversity: Annotated[
        float | None,
        typer.Option(help="Above 0, up to 1: choose responses that differ, among more [off]."),
    ] = None,
    responder: Annotated[
        str, typer.Option(help="Speaker of the responses [who did not speak last].")
    ] = "",
    topic: Annotated[str, typer.Option(help="Topic of the dialog [unknown].")] = "",
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The server to ask [none: in this process].")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the server's model [its default].")] = "",
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Without --address: a bundle [the embedded one]."),
    ] = None,
    key: Annotated[
        str, typer.Option(envvar="SISERVE_KEY", help="API key, best given by its variable.")
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; trust what the machine trusts.")] = (
        False
    ),
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encrypt; trust these authorities.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate of this client.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline in seconds.")] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Answer a dialog with several responses, by a server or by the embedded model.

    Example: siserve ask "how was your weekend?" -n 5 --seed 7

    Example: siserve ask --turn "A:hi" --turn "B:hello" "any plans?" --address localhost:50051

    A model of task lm says sentences and takes no text.

    Example: siserve ask -n 10 --bundle my-language-model
    """
    from siserve.client.answer import Answer, make_request

    context = make_context(turn, text)
    if not context and not address and bundle is None:
        raise UsageError('nothing to answer; write siserve ask "text" or add --turn A:text')
    try:
        request = make_request(
            context,
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
    except ValueError as error:
        raise UsageError(f"an option does not fit its field: {error}") from None
    answer: Answer
    if address:
        if bundle is not None:
            raise UsageError("--bundle is for answers in this process; leave out --address")
        from siserve.client.client import Client
        from siserve.client.credentials import Credentials

        credentials = Credentials(key, tls, tls_ca, tls_cert, tls_key)
        with Client(address, timeout, credentials) as client:
            answer = client.send(request)
    else:
        from siserve.client.in_process import InProcess

        with InProcess(bundle) as local:
            answer = local.send(request)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
        return
    from rich.console import Console

    from siserve.client.show import show_answer

    show_answer(Console(), context, answer)


@_app.command()
def models(
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server, with --admin.")],
    load: Annotated[
        str, typer.Option(metavar="BUNDLE", help="Serve this folder of its --model-dir.")
    ] = "",
    roll_back: Annotated[
        str, typer.Option(metavar="NAME", help="Let the model before answer for this name.")
    ] = "",
    key: Annotated[str, typer.Option(envvar="SISERVE_KEY", help="Key that is marked admin.")] = "",
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encrypt; trust these authorities.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline in seconds.")] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """List the models of a running server, after loading one or rolling one back.

    Example: siserve models --address localhost:50051 --roll-back my-model
    """
    from siserve.client.client import Client
    from siserve.client.credentials import Credentials

    if load and roll_back:
        raise UsageError("--load and --roll-back are two steps; give one of them")
    with Client(address, timeout, Credentials(key, tls_ca=tls_ca)) as client:
        if load:
            client.load_model(load)
        if roll_back:
            client.roll_back_model(roll_back)
        held = client.list_models()
    if as_json:
        fields = ("name", "version", "sha256", "is_current", "is_default")
        told = [{field: getattr(model, field) for field in fields} for model in held]
        typer.echo(json.dumps({"models": told}))
        return
    for model in held:
        state = "default" if model.is_default else "current" if model.is_current else "kept"
        typer.echo(f"{model.name}@{model.version}\t{state}\t{model.sha256[:12]}")


@_app.command()
def top(
    metrics: Annotated[
        str, typer.Option(metavar="URL", help="Where the server's metrics are.")
    ] = "http://127.0.0.1:9464/metrics",
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
    times: Annotated[int, typer.Option(min=0, help="How many looks; 0 = until Ctrl-C.")] = 0,
) -> None:
    """Watch a running server: rates, latencies, rows in flight, diversity, errors.

    Example: siserve top --metrics http://127.0.0.1:9464/metrics
    """
    from rich.console import Console

    from siserve.client.top import follow

    follow(Console(highlight=False), metrics, seconds, times)


def make_context(turns: Sequence[str], text: str) -> list[tuple[str, str]]:
    """Join the earlier turns and the last one, which the other speaker says.

    Raises:
        UsageError: if a turn has no speaker.
    """
    context = []
    for turn in turns:
        speaker, colon, said = turn.partition(":")
        if not colon or not speaker.strip():
            raise UsageError(f"--turn {turn!r} names no speaker; write it as A:text")
        context.append((speaker.strip(), said.strip()))
    if text:
        context.append((_next_speaker([speaker for speaker, _ in context]), text))
    return context


def _next_speaker(speakers: Sequence[str]) -> str:
    if not speakers:
        return "A"
    others = [speaker for speaker in speakers if speaker != speakers[-1]]
    return others[-1] if others else ("B" if speakers[-1] == "A" else "A")


def run(arguments: Sequence[str]) -> int:
    """Run a command of this room, its name first; return the exit code."""
    return run_app(_app, arguments)
