"""The measurements of a sentence VAE as a table for people."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["render_language"]

_LINES = {
    "nll": "NLL: -ELBO at beta 1, nats a sentence",
    "rec": "-E log p(x|z), nats",
    "kl": "KL, or its upper bound by the mixture, nats",
    "kl_lower": "  its lower twin, the own lambda left out",
    "b_k": "B_K, what the mixture gains, nats",
    "perplexity": "PPL, the KL in it",
    "iw_perplexity": "IW-PPL",
    "perplexity_of_iw_sentences": "  PPL of the same sentences",
    "iw_nll": "-log p(x), importance-weighted, nats",
    "iw_estimate_error": "  error that S leaves, nats",
    "active_units": "AU, active units",
    "mutual_information": "MI, nats",
    "mutual_information_ceiling": "  its ceiling, log of the batch",
}


def render_language(values: dict[str, Any]) -> str:
    """Lay out what was measured."""
    page = StringIO()
    console = Console(file=page, width=80, force_terminal=False)
    split = f", {values['split']} split" if "split" in values else ""
    console.print(f"{values['system']} ({values['method']}), {values['checkpoint']}{split}")
    console.print(
        f"{values['sentences']:,} sentences, {values['tokens']:,} tokens with their end marks; "
        f"J = {values['num_latents']}, K = {values['num_aux']}; IW with S = "
        f"{values['iw_samples']} on {values['iw_sentences']} sentences; MI over a batch of "
        f"{values['mi_batch']}; AU of {values['latent']} units, {values['au_noise_draws']} noise "
        "draws"
    )
    table = Table(box=None, show_header=False)
    table.add_column(min_width=46)
    table.add_column(justify="right", min_width=10)
    for name, label in _LINES.items():
        value = values[name]
        table.add_row(label, str(value) if isinstance(value, int) else f"{value:.4f}")
    console.print(table)
    for warning in values["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    return page.getvalue().rstrip()
