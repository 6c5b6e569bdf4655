"""The training room of the command line: train, evaluate, compare, sample, export, data.

Imports of torch and of everything above it wait until a command runs, so that --help is quick.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from siserve_training.config import TrainConfig, list_presets, parse_setting, preset_values
from siserve_training.errors import ConfigError
from siserve_training.evaluation.cli import compare
from siserve_training.language_cli import interpolate, reconstruct, sample
from siserve_training.methods import METHODS_OF
from siserve_training.quiet import quiet_libraries
from siserve_training.reproduce.cli import reproduce_app

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at a corpus.")
app.add_typer(data_app, name="data")
app.add_typer(reproduce_app, name="reproduce")
app.command()(compare)
app.command()(sample)
app.command()(interpolate)
app.command()(reconstruct)

DataOption = Annotated[Path, typer.Option("--data", help="Folder of the corpus.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Count malformed lines instead of refusing.")
]


_METHOD_HELP = "; ".join(f"of {task}: {', '.join(names)}" for task, names in METHODS_OF.items())


@app.callback()
def _room() -> None:
    """Train latent-variable text models and export them."""


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    task: Annotated[str, typer.Option("--task", help="dialog or lm.")] = "dialog",
    method: Annotated[str | None, typer.Option("--method", help=_METHOD_HELP)] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Name of a preset, or a TOML file.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="constant, monotonic or cyclical.")
    ] = None,
    aggressive: Annotated[
        str | None, typer.Option("--aggressive", help="off, fixed:T or adaptive.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    skip_bad_lines: SkipOption = False,
) -> None:
    """Train a model.

    Example: siserve train --task dialog --data corpus --preset dialog-si-cvae-small --out run
    """
    flags = {"method": method, "schedule": schedule, "aggressive": aggressive}
    changes = {key: value for key, value in flags.items() if value is not None}
    changes |= dict(parse_setting(setting) for setting in settings or [])
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    # idle threads sleep instead of spinning, or any neighbour on the cores slows training tenfold
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    quiet_libraries()
    from siserve_training.training import resume_run, start_run

    if resume:
        chosen = preset_values(preset) if preset else {}
        result = resume_run(out, data, {**chosen, **changes}, skip_bad_lines)
    else:
        values = {"task": task, **preset_values(_preset(task, method, preset)), **changes}
        result = start_run(out, data, TrainConfig.from_values(values), skip_bad_lines, overwrite)
    if result.finished:
        say(f"trained to step {result.step}; next: siserve export {out} --out BUNDLE")
    else:
        say(
            f"stopped at step {result.step}, saved; go on with: "
            f"siserve train --task {task} --data {data} --out {out} --resume"
        )


def _preset(task: str, method: str | None, preset: str | None) -> str:
    if task not in METHODS_OF:
        raise ConfigError(f"--task must be one of {', '.join(METHODS_OF)}, got {task!r}")
    if preset is not None:
        return preset
    if method is not None and method not in METHODS_OF[task]:
        raise ConfigError(
            f"--method of task {task} must be one of {', '.join(METHODS_OF[task])}, got {method!r}"
        )
    name = f"{task}-{method or next(iter(METHODS_OF[task]))}"
    if name not in list_presets():
        raise ConfigError(f"no preset {name!r}: expected one of {', '.join(list_presets())}")
    return name


@data_app.command("stats")
def data_stats(
    folder: Annotated[Path, typer.Argument(help="Folder of the corpus.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    skip_bad_lines: SkipOption = False,
) -> None:
    """Count what a corpus holds: dialogs and their utterances and pairs, or sentences.

    Example: siserve data stats corpus
    """
    from siserve_training.data.sentences import holds_sentences
    from siserve_training.data.statistics import corpus_statistics, render_statistics

    if holds_sentences(folder):
        from siserve_training.data.sentence_statistics import render_sentences, sentence_statistics

        counts = sentence_statistics(folder, skip_bad_lines)
        print(json.dumps(counts) if as_json else render_sentences(counts))
        return
    statistics = corpus_statistics(folder, skip_bad_lines)
    print(json.dumps(statistics) if as_json else render_statistics(statistics))


@app.command()
def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="What is measured.")],
    data: DataOption,
    split: Annotated[str, typer.Option("--split", help="valid or test.")] = "test",
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.")] = "best",
    responses: Annotated[int, typer.Option("--responses", help="Responses a context.")] = 10,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 for the likeliest words.")
    ] = 0.0,
    diversity: Annotated[
        float, typer.Option("--diversity", min=0.0, max=1.0, help="Diverse selection; 0 for off.")
    ] = 0.0,
    tail: Annotated[
        str, typer.Option("--tail", help="After </s>: pad, or decoder for what it says then.")
    ] = "pad",
    contexts: Annotated[int, typer.Option("--contexts", help="Contexts answered; 0: all.")] = 0,
    pairs: Annotated[
        int, typer.Option("--pairs", help="Pairs, or sentences, of likelihoods; 0: all.")
    ] = 500,
    samples: Annotated[
        int | None, typer.Option("--samples", help="S of log p(x|c); 100, of sentences 500.")
    ] = None,
    mi_batch: Annotated[
        int, typer.Option("--mi-batch", help="Sentences of the mutual information; 0: all.")
    ] = 1000,
    ranking_samples: Annotated[int, typer.Option("--ranking-samples", help="S of R@1.")] = 10,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="GloVe text file for BOW scores.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the responses' noise.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON there too.")] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", help="Write the responses there, JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    skip_bad_lines: SkipOption = False,
) -> None:
    """Measure a trained system: responses, likelihoods, dependence on the context, latents.

    Of a run of task lm: NLL, KL between two bounds, PPL, IW-PPL, active units, mutual information.

    Example: siserve evaluate run --data corpus --split test --vectors glove.6B.100d.txt
    """
    quiet_libraries()
    for option, file in (("--out", out), ("--dump", dump)):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ConfigError(f"{option} {file}: expected a file in a folder that exists")
    if _task_of(subject) == "lm":
        if dump is not None or vectors is not None:
            raise ConfigError("--dump and --vectors are for dialog; a sentence has no context")
        where = (subject, data, split, checkpoint, skip_bad_lines)
        _evaluate_language(
            where, (pairs, 500 if samples is None else samples, mi_batch), out, as_json
        )
        return
    from siserve_training.evaluation.generation import Sampling
    from siserve_training.evaluation.measure import Measurement, measure, open_subject, to_json
    from siserve_training.evaluation.report import render_measurement
    from siserve_training.evaluation.system import Decoding

    if tail not in ("pad", "decoder"):
        raise ConfigError(f"--tail must be pad or decoder, got {tail!r}")
    decoding = Decoding(temperature=temperature, stop_at_end=tail == "pad")
    sampling = Sampling(responses, decoding, diversity, seed=seed)
    asked = Measurement(
        sampling, contexts, pairs, 100 if samples is None else samples, ranking_samples, vectors
    )
    opened = open_subject(subject, data, split, checkpoint, skip_bad_lines)
    measured = {"split": split, **measure(opened, asked, dump, say)}
    if out is not None:
        from siserve_training.checkpoint import write_atomically

        write_atomically(out, to_json(measured, indent=2) + "\n")
    print(to_json(measured) if as_json else render_measurement(measured))


def _task_of(subject: Path) -> str:
    """Tell the task of a run or a bundle; what is neither is refused where it is opened."""
    from siserve.bundle.manifest import parse_manifest
    from siserve.bundle.tensors import MANIFEST_FILE

    from siserve_training.run_folder import RunFolder

    if (subject / "config.json").is_file():
        return RunFolder(subject).config().task
    manifest = subject / MANIFEST_FILE
    return parse_manifest(manifest.read_bytes()).task if manifest.is_file() else "dialog"


def _evaluate_language(
    where: tuple[Path, Path, str, str, bool],
    how_many: tuple[int, int, int],
    out: Path | None,
    as_json: bool,
) -> None:
    from siserve_training.checkpoint import write_atomically
    from siserve_training.evaluation.language import LanguageWish, measure_language
    from siserve_training.evaluation.language_bundle import BUNDLE_NOISE_DRAWS, open_language
    from siserve_training.evaluation.language_report import render_language
    from siserve_training.evaluation.measure import to_json

    is_run = (where[0] / "config.json").is_file()
    wish = LanguageWish(*how_many, **({} if is_run else {"noise_draws": BUNDLE_NOISE_DRAWS}))
    measured = {"split": where[2], **measure_language(open_language(*where), wish, say)}
    if out is not None:
        write_atomically(out, to_json(measured, indent=2) + "\n")
    if as_json:
        for warning in measured["warnings"]:
            say(f"warning: {warning}")
    print(to_json(measured) if as_json else render_language(measured))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a bundle.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle, to be made.")],
    name: Annotated[str, typer.Option("--name", help="Name of the model.")] = "",
    version: Annotated[str, typer.Option("--version", help="Of the model [1].")] = "",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 [default], or float16 for half the size.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="best or last.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, help="0 for off.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="1 for off.")] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="Model card in Markdown; a plain one if absent.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Corpus to try the 8-bit decoder on; else its own responses."),
    ] = None,
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, whole or not at all.

    The graphs must agree with the model to 1e-5 and its greedy tokens exactly. The decoder in 8-bit
    integers goes along if its perplexity agrees within 0.5 %. Sampling options become the bundle's
    defaults. From a bundle, whose run may be gone, graphs are emitted anew; they must agree with
    those that it has, and what it says of itself is kept.

    Example: siserve export run --out bundle
    """
    quiet_libraries()
    from siserve_training.export.cli import export_folder, told_of_export

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    manifest = export_folder(
        run,
        out,
        name,
        version,
        dtype,
        checkpoint,
        {key: value for key, value in sampling.items() if value is not None},
        card.read_text(encoding="utf-8") if card else "",
        data,
    )
    for line in told_of_export(manifest, out):
        say(line)


def say(message: str) -> None:
    """Print one line for a person, on standard error."""
    print(message, file=sys.stderr, flush=True)
