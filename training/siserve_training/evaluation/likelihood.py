"""How well a model explains a split, and how much its latents say."""

from __future__ import annotations

import dataclasses
import math
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.pairs import PairSet
from siserve_training.errors import ConfigError
from siserve_training.models.draws import Draws
from siserve_training.models.si_cvae import SICVAE
from siserve_training.objectives.surrogate import surrogate_log_q
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.dialog import latent_information, validate
from siserve_training.tasks.prepared import validation_batches

__all__ = ["evaluate_run", "importance_weighted", "render_likelihood"]

_CHUNK_SAMPLES = 10


def log_weights(draws: Draws) -> Tensor:
    """Return log p(x|z,c) + log p(z|c) - log q~(z|x,c) of each latent, (B, J).

    With the own component in q~ their exponentials average to p(x|c) for every K.
    """
    log_q_z = surrogate_log_q(draws.z, draws.own, draws.aux)
    return draws.log_p_x + draws.prior.log_prob(draws.z) - log_q_z


@torch.no_grad()
def importance_weighted(
    model: SICVAE, pairs: PairSet, config: TrainConfig, limit: int, samples: int
) -> dict[str, float]:
    """Estimate log p(x|c) by S importance samples of the posterior (Burda et al. 2016).

    Args:
        model: in any mode.
        pairs: the split.
        config: K and sizes.
        limit: evenly spread pairs; 0 for all.
        samples: S, at least 1.

    Returns:
        log_p_x: nats a response; std_error: of that mean over pairs; perplexity: per token.
    """
    device = next(model.parameters()).device
    model.train(False)
    chunks = [min(_CHUNK_SAMPLES, samples - at) for at in range(0, samples, _CHUNK_SAMPLES)]
    estimates: list[Tensor] = []
    tokens = 0
    streams = []
    for number, size in enumerate(chunks):
        changed = dataclasses.replace(config, num_latents=size, seed=config.seed + 7919 * number)
        streams.append(validation_batches(pairs, changed, limit, batch_size=32))
    for batches in zip(*streams, strict=True):
        weights = []
        for batch in batches:
            batch = batch.to(device)
            weights.append(log_weights(model(batch.pairs, batch.eps_lam, batch.eps_z)))
        estimates.append(torch.logsumexp(torch.cat(weights, dim=1), 1) - math.log(samples))
        tokens += int(batches[0].pairs.response_lengths.sum())
    log_p = torch.cat(estimates).double()
    return {
        "log_p_x": float(log_p.mean()),
        "std_error": float(log_p.std() / math.sqrt(len(log_p))),
        "perplexity": math.exp(-float(log_p.sum()) / tokens),
        "pairs": float(len(log_p)),
        "samples": float(samples),
    }


def evaluate_run(
    run_dir: Path,
    data: Path,
    split: str,
    checkpoint: str,
    limit: int,
    samples: int,
    skip_bad_lines: bool,
) -> dict[str, Any]:
    """Measure a checkpoint of a run on a split.

    Raises:
        ConfigError: if the split or the number of samples cannot be meant.
        RunError, CorpusError: if the run or the corpus cannot be read.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    if samples < 1 or limit < 0:
        raise ConfigError(f"--samples must be at least 1, got {samples}; --pairs at least 0")
    run = RunFolder(run_dir)
    config, text, features = run.config(), run.text(), run.features()
    dialogs, _ = DialogCorpus(data, skip_bad_lines).read(split)
    pairs = PairSet.from_dialogs(dialogs, text, features, config.context_utterances)
    folder = run.checkpoint(checkpoint)
    model = SICVAE.from_pretrained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    quick = dataclasses.replace(config, valid_pairs=limit)
    elbo = validate(model, pairs, quick, device)
    count = min(256, len(pairs))
    information = latent_information(model, pairs, config, device, count)
    weighted = importance_weighted(model, pairs, config, limit, samples)
    return {
        "run": run_dir.name,
        "checkpoint": folder.name,
        "split": split,
        "pairs": int(weighted["pairs"]),
        "K": config.num_aux,
        "elbo": elbo["elbo"],
        "rec": elbo["rec"],
        "kl": elbo["kl"],
        "b_k": elbo["b_k"],
        "elbo_perplexity": elbo["perplexity"],
        "S": samples,
        "iw_log_p_x": weighted["log_p_x"],
        "iw_std_error": weighted["std_error"],
        "iw_perplexity": weighted["perplexity"],
        "mutual_information": information,
        "mutual_information_batch": count,
        "mutual_information_ceiling": math.log(count),
    }


_EXPLAINED = {
    "elbo": "ELBO at beta 1, nats a response",
    "rec": "-E log p(x|z,c), nats a response",
    "kl": "KL (surrogate, an upper bound), nats",
    "b_k": "B_K, what the mixture gains over its components, nats",
    "elbo_perplexity": "perplexity by the ELBO, KL inside",
    "iw_log_p_x": "log p(x|c) by importance sampling, nats a response",
    "iw_std_error": "its standard error over pairs",
    "iw_perplexity": "perplexity by importance sampling",
    "mutual_information": "I(x; z) estimate, nats",
    "mutual_information_ceiling": "its ceiling, log of the batch",
}


def render_likelihood(measured: dict[str, Any]) -> str:
    """Write the numbers as a table for a person."""
    title = (
        f"{measured['run']}, {measured['checkpoint']}, {measured['split']}: {measured['pairs']:,} "
        f"pairs, K = {measured['K']}, S = {measured['S']}"
    )
    table = Table("measure", "value", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for key, what in _EXPLAINED.items():
        table.add_row(what, f"{measured[key]:.3f}")
    page = StringIO()
    Console(file=page, width=100).print(table)
    return page.getvalue().rstrip()
