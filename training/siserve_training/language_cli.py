"""`siserve sample`, `interpolate` and `reconstruct`: a trained sentence VAE at work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siserve_training.errors import ConfigError

if TYPE_CHECKING:
    from siserve_training.evaluation.language_use import SentenceModel

__all__ = ["interpolate", "reconstruct", "sample"]

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of task lm.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of all noise.")]
_MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Of a sentence.")]
_Checkpoint = Annotated[str, typer.Option("--checkpoint", help="best or last.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def sample(
    run: _Run,
    count: Annotated[int, typer.Option("-n", help="Sentences.")] = 10,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 for the likeliest words of each z.")
    ] = 1.0,
    seed: _Seed = 0,
    max_tokens: _MaxTokens = 60,
    checkpoint: _Checkpoint = "best",
    as_json: _Json = False,
) -> None:
    """Draw sentences: z from the prior, words from the decoder.

    Example: siserve sample run -n 10
    """
    said = _open(run, checkpoint, temperature, max_tokens, seed).sample(count)
    print(json.dumps({"seed": seed, "sentences": said}) if as_json else "\n".join(said))


def interpolate(
    run: _Run,
    first: Annotated[str, typer.Argument(help="A sentence, blanks between its tokens.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    steps: Annotated[int, typer.Option("--steps", help="Sentences, both ends counted.")] = 7,
    seed: _Seed = 0,
    max_tokens: _MaxTokens = 60,
    checkpoint: _Checkpoint = "best",
    as_json: _Json = False,
) -> None:
    """Walk from one sentence to another: the likeliest words of latents on the line between.

    Example: siserve interpolate run "the market fell" "he joined the board" --steps 7
    """
    opened = _open(run, checkpoint, 0.0, max_tokens, seed)
    said = opened.interpolate(first, second, steps)
    print(json.dumps({"sentences": said}) if as_json else "\n".join(said))


def reconstruct(
    run: _Run,
    file: Annotated[Path, typer.Argument(help="Text file, a sentence a line.")],
    seed: _Seed = 0,
    max_tokens: _MaxTokens = 60,
    checkpoint: _Checkpoint = "best",
    as_json: _Json = False,
) -> None:
    """Encode each sentence of a file and decode its posterior mean; both are printed.

    Example: siserve reconstruct run sentences.txt
    """
    from siserve_training.data.sentences import read_sentences

    if not file.is_file():
        raise ConfigError(f"{file}: expected a text file with a sentence a line")
    given = list(read_sentences(file))
    if not given:
        raise ConfigError(f"{file}: no sentence in it; expected one a line")
    said = _open(run, checkpoint, 0.0, max_tokens, seed).reconstruct(given)
    pairs = list(zip(given, said, strict=True))
    if as_json:
        print(json.dumps({"pairs": [{"given": one, "said": other} for one, other in pairs]}))
    else:
        print("\n\n".join(f"< {one}\n> {other}" for one, other in pairs))


def _open(
    run: Path, checkpoint: str, temperature: float, max_tokens: int, seed: int
) -> SentenceModel:
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"--checkpoint must be best or last, got {checkpoint!r}")
    from siserve_training.evaluation.language import open_language_model
    from siserve_training.evaluation.language_use import SentenceModel
    from siserve_training.evaluation.system import Decoding
    from siserve_training.quiet import quiet_libraries

    quiet_libraries()
    model, folder = open_language_model(run, checkpoint)
    return SentenceModel(model, folder.text(), Decoding(max_tokens, temperature), seed)
