"""Measure a served dialog model: variety, dependence on the context and on the latent, speed.

    python tests/benchmarks/check_model.py --data CORPUS [--bundle DIR] [--contexts 200] [--json]

Over evenly spread contexts of a split, n responses each, through the code that serves, without
topic or profile. Bars of the embedded model: at least 90 % of sets with 4 or more different texts
at its default options and 50 % at temperature 0, mean distinct-1 at least 0.5, and responses that
change in at least 95 % of cases when another dialog's context takes the place of the right one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from siserve.client.in_process import InProcess
from siserve.v1 import dialog_pb2

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Context:
    """The turns before a response, oldest first, and who responds."""

    turns: Turns
    responder: str


def read_contexts(file: Path, count: int, window: int = 9) -> list[Context]:
    """Return `count` contexts spread evenly over the (context, response) pairs of a split."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        said = [(entry[0], entry[1]) for entry in json.loads(line)["utts"]]
        for place in range(1, len(said) - 1):
            found.append(Context(said[max(0, place - window) : place], said[place][0]))
    return [found[i * len(found) // count] for i in range(count)]


def ask(model: InProcess, context: Context, n: int, seed: int, temperature: float | None):
    request = dialog_pb2.GenerateResponsesRequest(n=n, seed=seed, responder=context.responder)
    for speaker, text in context.turns:
        request.context.add(speaker=speaker, text=text)
    if temperature is not None:
        request.temperature = temperature
    return model.send(request)


def measure(model: InProcess, contexts: list[Context], n: int, temperature: float | None) -> dict:
    """Ask each context, and each seed again under the context of another dialog."""
    texts, changed, distinct_1, distinct_2, latency = [], [], [], [], []
    log_prob, tokens = 0.0, 0
    shift = len(contexts) // 2
    for seed, context in enumerate(contexts):
        start = time.perf_counter()
        answer = ask(model, context, n, seed, temperature)
        latency.append(time.perf_counter() - start)
        own = [response.text for response in answer.responses]
        other = ask(model, contexts[(seed + shift) % len(contexts)], n, seed, temperature)
        changed.append(own != [response.text for response in other.responses])
        texts.append(own)
        distinct_1.append(answer.distinct_1)
        distinct_2.append(answer.distinct_2)
        log_prob += sum(response.log_prob for response in answer.responses)
        tokens += sum(response.num_tokens for response in answer.responses)
    pooled = [text for own in texts for text in own]
    return {
        "temperature": "default" if temperature is None else temperature,
        "sets_with_4_different": statistics.fmean(len(set(own)) >= 4 for own in texts),
        "sets_all_different": statistics.fmean(len(set(own)) == n for own in texts),
        "distinct_1": statistics.fmean(distinct_1),
        "distinct_2": statistics.fmean(distinct_2),
        "changed_by_context": statistics.fmean(changed),
        "mean_tokens": tokens / (n * len(contexts)),
        "log_prob_per_token": log_prob / tokens,
        "different_texts_over_all": len(set(pooled)) / len(pooled),
        "latency_p50_ms": 1000 * statistics.median(latency),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the dialog corpus")
    parser.add_argument("--bundle", type=Path, help="a bundle; the embedded one by default")
    parser.add_argument("--split", default="test")
    parser.add_argument("--contexts", type=int, default=200)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--temperature", type=float, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    contexts = read_contexts(options.data / f"{options.split}.jsonl", options.contexts)
    with InProcess(options.bundle) as model:
        rows = [
            measure(model, contexts, options.n, temperature)
            for temperature in [None, 0.0, *options.temperature]
        ]
    result = {"split": options.split, "contexts": options.contexts, "n": options.n, "rows": rows}
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.contexts} contexts of {options.split}, n={options.n}, seeds 0..")
    for name in rows[0]:
        values = (row[name] for row in rows)
        print(f"{name:26}", *(f"{v:>10}" if isinstance(v, str) else f"{v:10.3f}" for v in values))


if __name__ == "__main__":
    main()
