"""`siserve`: the first word picks the room, and each room owns its parser."""

from __future__ import annotations

import difflib
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from siserve import __version__
from siserve.command import run_app

__all__ = ["main", "run"]

_SERVING = {
    "serve": "serve a model over gRPC",
    "verify": "check a bundle",
    "key": "make an API key for a server",
}
_CLIENT = {
    "ask": "ask a server, or the embedded model",
    "models": "list, load and roll back the models of a server",
    "top": "watch a running server",
}
_BENCH = {
    "bench": "measure the decoder, a server under load, training",
    "plan": "replicas and cost for a rate of requests",
}
_TRAINING = {
    "train": "train a model on a corpus",
    "evaluate": "measure a trained model",
    "compare": "compare the responses of two models",
    "sample": "draw sentences from a trained language model",
    "interpolate": "walk between two sentences with it",
    "reconstruct": "encode sentences and decode them again",
    "export": "turn a trained model into a bundle",
    "data": "look at a corpus",
    "reproduce": "run the paper's tables anew",
}
#: Variables that are 1 while a server or a client starts, unless somebody has set them. Of numpy's
#: products a start has one kind, which threads that wait by spinning make no faster and twice as
#: dear; for plugins pydantic looks through all that is installed.
_SPARING = ("OPENBLAS_NUM_THREADS", "PYDANTIC_DISABLE_PLUGINS")
_TRAINING_PACKAGES = frozenset(
    {
        "accelerate",
        "matplotlib",
        "nltk",
        "onnx",
        "sacrebleu",
        "safetensors",
        "tensorboard",
        "torch",
        "transformers",
    }
)


def main() -> NoReturn:
    """Run the command line and exit."""
    if sys.argv[1:2] == ["serve"]:
        gc.disable()  # until all is loaded: of what a start makes, nearly all stays
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: 0 done, 1 it failed, 2 wrong use."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"siserve {__version__}")
        return 0
    command = arguments[0]
    if command in _SERVING or command in _CLIENT:
        for name in _SPARING:
            os.environ[name] = os.environ.get(name) or "1"
    if command in _SERVING:
        return _run_room("siserve.serving.cli", arguments)
    if command in _CLIENT:
        return _run_room("siserve.client.cli", arguments)
    if command in _BENCH:
        return _run_room("siserve.bench.cli", arguments)
    if command in _TRAINING:
        return _run_training(arguments)
    known = [*_SERVING, *_CLIENT, *_BENCH, *_TRAINING]
    close = difflib.get_close_matches(command, known, 1)
    guess = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
    print(f"siserve: {command!r} is no command; {guess}", file=sys.stderr)
    return 2


def _run_room(module: str, arguments: Sequence[str]) -> int:
    try:
        room: Callable[[Sequence[str]], int] = importlib.import_module(module).run
        return room(arguments)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        return _missing(arguments[0], "onnxruntime", "cpu] or siserve[gpu")


def _run_training(arguments: Sequence[str]) -> int:
    try:
        if importlib.util.find_spec("torch") is None:  # told before any option is looked at
            return _missing(arguments[0], "torch", "train")
        from siserve_training.cli import app

        return run_app(app, arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAINING_PACKAGES:
            raise
        return _missing(arguments[0], package, "train")


def _missing(command: str, package: str, extra: str) -> int:
    print(
        f"siserve {command} needs {package}, which is not installed: "
        f"pip install 'siserve[{extra}]'",
        file=sys.stderr,
    )
    return 2


def _help() -> str:
    lines = ["usage: siserve COMMAND [OPTIONS]", ""]
    for title, commands in (
        ("serve", _SERVING),
        ("ask", _CLIENT),
        ("measure", _BENCH),
        ("train (needs siserve[train])", _TRAINING),
    ):
        lines += [f"{title}:", *(f"  {name:11} {what}" for name, what in commands.items()), ""]
    lines += [
        "siserve COMMAND --help tells its options.",
        'Example: siserve ask "how was your weekend?"',
    ]
    return "\n".join(lines)
