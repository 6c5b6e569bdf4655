"""Choose `run_length`: valid loss after equal processor time for several lengths of runs.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_run_length.py --data CORPUS [--seconds 150]

Longer runs of consecutive windows share more utterances, so a step is cheaper; a batch out of few
dialogs teaches less. Each length trains the small preset, at a constant beta, from the same weights
for the same processor time (validation and start-up not counted).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from siserve_training.config import TrainConfig, preset_values
from siserve_training.fit import Trainer
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.dialog import DialogData, build_model, load_dialog_data, validate
from siserve_training.tasks.prepared import training_batches


def train_for(config: TrainConfig, data: DialogData, seconds: float) -> tuple[int, dict]:
    """Train for `seconds` of processor time; return the updates done and the valid numbers."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(config, data)
        trainer = Trainer(config, data, model, RunFolder(Path(folder)))
        batches = training_batches(data.train, config, 0)
        start = time.process_time()
        while time.process_time() - start < seconds:
            trainer.update(next(batches))
        values = validate(model, data.valid, config, trainer.device)
    return trainer.state.step, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the dialog corpus")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 4, 16, 96])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    values = preset_values("dialog-si-cvae-small") | {"schedule": "constant", "decay_share": 0.0}
    config = TrainConfig.from_values(values | {"seed": options.seed, "aux_horizon": 0.0})
    data = load_dialog_data(options.data, config, skip_bad_lines=False)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads, torch "
        f"{torch.__version__}, dialog-si-cvae-small, batch {config.batch_size}, seed "
        f"{options.seed}, {options.seconds:g} s of processor time each"
    )
    print(
        f"{'run_length':>10} {'updates':>8} {'pairs/s':>8} {'valid loss':>10} {'rec':>8} {'KL':>7}"
    )
    for length in options.lengths:
        changed = replace(config, run_length=length)
        steps, valid = train_for(changed, data, options.seconds)
        loss = valid["rec"] + config.beta_max * max(config.free_nats, valid["kl"])
        rate = steps * config.batch_size / options.seconds
        print(
            f"{length:>10} {steps:>8} {rate:>8.0f} {loss:>10.3f} {valid['rec']:>8.3f} "
            f"{valid['kl']:>7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
