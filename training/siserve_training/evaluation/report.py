"""The measurements of one system as a table for people."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["render_measurement"]

_SECTIONS: dict[str, dict[str, str]] = {
    "responses": {
        "bleu_recall_legacy": "BLEU recall, NLTK to 3.4.5",
        "bleu_precision_legacy": "BLEU precision, NLTK to 3.4.5",
        "bleu_f1_legacy": "BLEU F1, NLTK to 3.4.5",
        "bleu_recall_modern": "BLEU recall, NLTK from 3.6",
        "bleu_precision_modern": "BLEU precision, NLTK from 3.6",
        "bleu_f1_modern": "BLEU F1, NLTK from 3.6",
        "bow_average_peer": "BOW average, as the peers compute it",
        "bow_extrema_peer": "BOW extrema, as the peers compute it",
        "bow_greedy_peer": "BOW greedy, as the peers compute it",
        "bow_average_clean": "BOW average, words alone",
        "bow_extrema_clean": "BOW extrema, words alone",
        "bow_greedy_clean": "BOW greedy, words alone",
        "intra_dist_1": "intra-dist-1",
        "intra_dist_2": "intra-dist-2",
        "inter_dist_1": "inter-dist-1, of one context",
        "inter_dist_2": "inter-dist-2, of one context",
        "corpus_distinct_1": "distinct-1, over all contexts",
        "corpus_distinct_2": "distinct-2, over all contexts",
        "self_bleu": "self-BLEU",
        "varied_sets": "share of sets with 4 different of 5",
        "sacrebleu": "corpus BLEU of first responses",
        "length": "length, words",
    },
    "likelihood": {
        "prior_log_p_x": "log p(x|c) over the prior, nats",
        "prior_estimate_error": "  error that S leaves, nats",
        "prior_perplexity": "perplexity over the prior",
        "iw_log_p_x": "log p(x|c), importance-weighted, nats",
        "iw_estimate_error": "  error that S leaves, nats",
        "iw_perplexity": "perplexity, importance-weighted",
        "recall_at_1_of_10": "R@1/10 of contexts (chance 0.1)",
        "recall_at_1_of_20": "R@1/20 of contexts (chance 0.05)",
    },
    "latents": {
        "elbo": "ELBO at beta 1, nats",
        "rec": "-E log p(x|z,c), nats",
        "kl": "KL (surrogate, an upper bound), nats",
        "mutual_information": "mutual information, nats",
        "mutual_information_ceiling": "  its ceiling, log of the batch",
        "b_k": "B_K, what the mixture gains, nats",
        "log_b_k": "log B_K",
        "noise_share_of_mu": "share of Var(mu) that the noise makes",
        "noise_share_of_width": "  of the variance along its widest axis",
        "non_gaussian": "posteriors told from a Gaussian at 5 %",
    },
}


def render_measurement(values: dict[str, Any]) -> str:
    """Lay out what was measured, a section a table."""
    console = Console(file=StringIO(), width=72, force_terminal=False)
    split = f", {values['split']} split" if "split" in values else ""
    console.print(f"{values['system']} ({values['method']}), {values['checkpoint']}{split}")
    console.print(
        f"{values['contexts']} contexts, {values['responses']} responses each, temperature "
        f"{values['temperature']:g}; vectors: {values['vectors'] or 'none, no BOW scores'}; "
        f"likelihoods on {values['pairs']} pairs, S = {values['prior_samples']}"
    )
    for title, lines in _SECTIONS.items():
        rows = [(label, values[name]) for name, label in lines.items() if name in values]
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=None, show_header=False)
        table.add_column(min_width=46)
        table.add_column(justify="right", min_width=10)
        for label, value in rows:
            table.add_row(label, f"{value:.4f}")
        console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]
