"""The training room of the command line: train, data, export.

Imports of torch and of everything above it wait until a command runs, so that --help is quick.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from siserve_training.config import TrainConfig, list_presets, parse_setting, preset_values
from siserve_training.errors import ConfigError, TrainingError

__all__ = ["main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at a corpus.")
app.add_typer(data_app, name="data")

DataOption = Annotated[Path, typer.Option("--data", help="Folder of the corpus.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Count malformed lines instead of refusing.")
]


@app.callback()
def _room() -> None:
    """Train latent-variable text models and export them."""


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    task: Annotated[str, typer.Option("--task", help="dialog.")] = "dialog",
    method: Annotated[str | None, typer.Option("--method", help="si-cvae.")] = None,
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
    defaults = {"dialog": "si-cvae"}
    if task not in defaults:
        raise ConfigError(f"--task must be one of {', '.join(defaults)}, got {task!r}")
    if preset is not None:
        return preset
    name = f"{task}-{method or defaults[task]}"
    if name not in list_presets():
        raise ConfigError(f"no preset {name!r}: expected one of {', '.join(list_presets())}")
    return name


@data_app.command("stats")
def data_stats(
    folder: Annotated[Path, typer.Argument(help="Folder of the corpus.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    skip_bad_lines: SkipOption = False,
) -> None:
    """Count dialogs, utterances, tokens and pairs of a dialog corpus.

    Example: siserve data stats corpus
    """
    from siserve_training.data.statistics import corpus_statistics, render_statistics

    statistics = corpus_statistics(folder, skip_bad_lines)
    print(json.dumps(statistics) if as_json else render_statistics(statistics))


def say(message: str) -> None:
    """Print one line for a person, on standard error."""
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit status: 0 done, 1 the work failed, 2 wrong use."""
    command: Any = typer.main.get_command(app)
    try:
        command(argv if argv is not None else sys.argv[1:], prog_name="siserve")
    except TrainingError as error:
        say(f"siserve: {error}")
        return error.exit_code
    except OSError as error:
        say(f"siserve: {error.filename or ''}: {error.strerror or error}")
        return 1
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0
