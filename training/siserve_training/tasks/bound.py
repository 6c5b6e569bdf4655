"""The bound of a split at beta 1, of anything that draws latents and scores texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from siserve_training.evaluation.system import Scorer
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["mean_bound"]


@torch.no_grad()
def mean_bound(
    scorer: Scorer[Any], batches: Iterable[PreparedBatch], device: torch.device
) -> dict[str, float]:
    """Return the ELBO and its parts, nats a text, over all texts of some batches.

    Args:
        scorer: a model in evaluation mode, or a system.
        batches: with their noise; for a scorer without densities with noise of the prior for J.
        device: where the scorer takes its tensors.

    Returns:
        score: what the best checkpoint is chosen by, elbo where there is one; perplexity: of it.
    """
    sums: Counter[str] = Counter()
    for batch in batches:
        sums.update(_totals(scorer, batch.to(device)))
    tokens, count = sums.pop("tokens"), sums.pop("texts")
    values = {name: total / count for name, total in sums.items()}
    return {**values, "perplexity": math.exp(-sums["score"] / tokens)}


def _totals(scorer: Scorer[Any], batch: PreparedBatch) -> dict[str, float]:
    texts, noise = batch.pairs, batch.noise
    encoded = scorer.encode(texts)
    counts = {"tokens": float(texts.response_lengths.sum()), "texts": float(len(texts))}
    if not scorer.has_densities:
        z = scorer.draw_prior(encoded.c, torch.cat([noise.eps_z, noise.eps_prior], dim=-1))
        log_p_x = scorer.log_p_x(texts, encoded.c, z)  # (B, J)
        mean = torch.logsumexp(log_p_x, dim=1) - math.log(log_p_x.shape[1])
        return {"score": float(mean.sum()), **counts}
    latents = scorer.draw_posterior(encoded, noise)
    log_p_x = scorer.log_p_x(texts, encoded.c, latents.z)  # (B, J)
    kl = (latents.log_q_z - latents.log_p_z).mean(1)
    gain = (latents.log_own_z - latents.log_q_z).mean(1)
    rec = -log_p_x.mean(1)
    elbo = float((-rec - kl).sum())
    return {
        "elbo": elbo,
        "rec": float(rec.sum()),
        "kl": float(kl.sum()),
        "b_k": float(gain.sum()),
        "score": elbo,
        **counts,
    }
