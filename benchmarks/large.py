"""Losses of 100,000 rows and 10^10 pairs: indices beyond 2^31, with values and gradients checked.

Nothing of size N x M fits in memory. The expected values are computed in fp64 for blocks of rows:
all hardest negatives for max of hinges, and the pairs of sampled rows for the constraint.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import inputs, memory, results, rivals
from benchmarks.limits import synchronize
from benchmarks.rivals.eager import MARGIN
from benchmarks.shapes import BEYOND_32_BITS, Size
from itm_kernels import functional

SAMPLE, BLOCK = 256, 500
LOWER, UPPER = 0.05, 0.5  # the paper's
# Share of sampled rows that may differ: where fp32 cannot distinguish the two hardest negatives, or
# on which side of a bound one of 100,000 pairs lies, the gradient of a row is a different one.
EXCEPTIONS, CLOSE = 0.02, 1e-3


def progress(what: str, rows: range) -> Iterator[int]:
    """Yield the starts of blocks, and print the progress every 5 s."""
    start = said = time.monotonic()
    for first in rows:
        yield first
        if time.monotonic() - said > 5:
            said = time.monotonic()
            left = (said - start) * (rows.stop / (first + rows.step) - 1)
            print(f"  {what}: {first:,} of {rows.stop:,} rows, {left:.0f} s left", flush=True)


def hinges_in_blocks(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, in fp64, the loss of every pair and its gradients from blocks of rows."""
    v, c = image.double(), text.double()
    N = len(v)
    positive = (v * c).sum(1)
    hardest_text = torch.empty(N, dtype=torch.long, device=v.device)
    text_score = torch.empty_like(positive)
    image_score = torch.full_like(positive, -torch.inf)
    hardest_image = torch.zeros_like(hardest_text)
    for first in progress("fp64 scores", range(0, N, BLOCK)):
        scores = v[first : first + BLOCK] @ c.T
        own = torch.arange(len(scores), device=v.device)
        scores[own, first + own] = -torch.inf
        text_score[first : first + BLOCK], hardest_text[first : first + BLOCK] = scores.max(1)
        column, index = scores.max(0)
        hardest_image = torch.where(column > image_score, first + index, hardest_image)
        image_score = torch.maximum(column, image_score)
    from_image, from_text = MARGIN + text_score - positive, MARGIN + image_score - positive
    a, b = (from_image > 0).double()[:, None], (from_text > 0).double()[:, None]
    grad_v = a * (c[hardest_text] - c) - b * c
    grad_v.index_add_(0, hardest_image, b * c)
    grad_c = b * (v[hardest_image] - v) - a * v
    grad_c.index_add_(0, hardest_text, a * v)
    return from_image.relu() + from_text.relu(), grad_v, grad_c


def constraint_of_rows(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return, in fp64, the sums of sampled rows and their gradient of the whole loss."""
    x = x.double()
    unit = normalize(x, dim=-1)
    sampled = x[rows].requires_grad_()
    total = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    for first in range(0, len(rows), 16):
        part = slice(first, first + 16)
        delta = 1 - normalize(sampled[part], dim=-1) @ unit.T
        outside = (delta <= LOWER) | (delta >= UPPER)
        outside[torch.arange(len(delta)), rows[part]] = True
        values = delta.masked_fill(outside, 0).sum(1)
        total[part] = values.detach()
        # Every pair counts twice, once for each of its rows.
        (2 * values.sum()).backward()
    assert sampled.grad is not None
    return total, sampled.grad


def rows_off(found: Tensor, expected: Tensor) -> float:
    """Return the share of rows that are not close, relative to the norm of a typical row."""
    scale = expected.reshape(len(expected), -1).norm(dim=1).mean().clamp_min(1e-30)
    error = (found.double() - expected).reshape(len(expected), -1).norm(dim=1) / scale
    return (error > CLOSE).double().mean().item()


def to_the_end(
    loss: Callable[..., Tensor], leaves: tuple[Tensor, ...], device: str
) -> tuple[Tensor, dict[str, Any]]:
    """Run forward and backward; return the unreduced loss, the times and the peak memory."""
    found: list[Tensor] = []
    clock: dict[str, float] = {}

    def run() -> None:
        for leaf in leaves:
            leaf.requires_grad_()
        for name, step in (
            ("forward", lambda: found.append(loss(*leaves))),
            ("backward", lambda: found[0].sum().backward()),
        ):
            start = time.perf_counter()
            step()
            synchronize(device)
            clock[name] = time.perf_counter() - start
            print(f"  {name}: {clock[name]:.1f} s", flush=True)

    peak = memory.peak(run, device)
    return found[0].detach(), {**clock, "peak_memory": peak}


def measure(N: int, D: int, device: str) -> dict[str, Any]:
    """Run both losses and check them; return the records."""
    image, text = inputs.paired(Size(N, D), device)
    sample = torch.randperm(N, generator=inputs.generator(1))[: min(N, SAMPLE)].to(device)
    records = {}
    print(f"max_of_hinges, N = {N:,}, D = {D}", flush=True)
    loss = partial(functional.max_of_hinges_loss, margin=MARGIN, reduction="none")
    values, record = to_the_end(loss, (image, text), device)
    expected, grad_image, grad_text = hinges_in_blocks(image.detach(), text.detach())
    assert image.grad is not None and text.grad is not None
    record["rows_off"] = {
        "value": rows_off(values[sample], expected[sample]),
        "image gradient": rows_off(image.grad[sample], grad_image[sample]),
        "text gradient": rows_off(text.grad[sample], grad_text[sample]),
    }
    records["max_of_hinges"] = record

    print(f"intra_modal cosine (paper), N = {N:,}, D = {D}", flush=True)
    x = image.detach().clone()
    options: dict[str, Any] = {"mode": "paper", "lower": LOWER, "upper": UPPER}
    loss = partial(functional.intra_modal_constraint, **options, reduction="none")
    values, record = to_the_end(loss, (x,), device)
    total, gradient = constraint_of_rows(x.detach(), sample)
    assert x.grad is not None
    record["rows_off"] = {
        "value": rows_off(values[sample], total),
        "gradient": rows_off(x.grad[sample], gradient),
    }
    records["intra_modal cosine paper"] = record
    for name, record in records.items():
        record |= {"N": N, "D": D, "sampled_rows": len(sample)}
        assert max(record["rows_off"].values()) <= EXCEPTIONS, (name, record)
    return records


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only check that it runs")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    parsed = parser.parse_args()
    records = measure(*((300, 16) if parsed.quick else BEYOND_32_BITS), parsed.device)
    facts = results.machine(parsed.device, torch.get_num_threads())
    store = results.Results(parsed.results / f"{results.name(facts)}.json")
    store.begin(facts, rivals.versions(), resume=True)
    for name, record in records.items():
        store.add("large", name, record)
        print(name, results.rounded(record))


if __name__ == "__main__":
    main()
