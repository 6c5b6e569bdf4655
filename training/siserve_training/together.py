"""What several processes must agree on: the numbers of a step, and when to stop."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from siserve_training.methods.method import LossReport

__all__ = ["any_process", "over_processes"]


def over_processes(accelerator: Accelerator, report: LossReport, share: float) -> LossReport:
    """Turn the report of a process's part of a batch into that of the whole batch.

    All processes then see one loss: they log it, stop at it and end inner loops by it alike. With
    one process the report is returned as it is.

    Args:
        accelerator: of this process.
        report: means over the pairs of this process.
        share: those pairs over the pairs of an even split.

    Returns:
        A report whose loss has no gradient.
    """
    if accelerator.num_processes == 1:
        return report
    own = [report.loss.detach(), *(part.detach() for part in report.parts.values())]
    numbers = torch.stack([number.float() for number in own]) * share
    means = accelerator.reduce(numbers, "mean")  # (1 + parts,)
    tokens = accelerator.reduce(torch.tensor(report.tokens, device=numbers.device), "sum")
    loss, *parts = means.unbind()
    return LossReport(loss, dict(zip(report.parts, parts, strict=True)), int(tokens))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process says so; all get the same answer."""
    if accelerator.num_processes == 1:
        return flag
    votes = torch.tensor(int(flag), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum") > 0)
