"""Time and memory of whole losses over N, each in a fresh process, with fitted exponents.

There are two studies of forward plus backward: N from 128 to 131,072 at a small width, where the
work on the N x M pairs dominates, and the memory of one large batch. Every loss has its own
process, so that it does not reuse memory that an earlier loss has freed. Sizes ascend, so that the
largest allocates its own memory.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import inputs, memory, ours, results, rivals
from benchmarks.limits import seconds
from benchmarks.rivals import eager
from benchmarks.shapes import MEMORY, STUDY, Size
from itm_kernels import functional
from itm_kernels.backends import Backend

Loss = Callable[[Tensor, Tensor], Tensor]
REPEATS, ENOUGH = 9, 0.3  # measurements per size; one if a step takes more seconds than ENOUGH
SETTLED = 32  # rows of an unmeasured first step
# A size that is expected to take more seconds than this is not run.
LONGEST, LONGEST_OF_RIVAL = 100.0, 40.0
FITTED_FROM = 2048  # smaller sizes are dominated by the overhead of calls
# glibc keeps freed blocks in its heap, which fragments: the same step held 185 to 307 MiB in a
# dozen processes, of which 133 were live. With this setting glibc returns large blocks when they
# are freed, and the memory study counts what a loss needs, 138 MiB each time.
NO_HOLES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def _first(constraint: Callable[[Tensor], Tensor]) -> Loss:
    return lambda image, text: constraint(image)


def _ito(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """Return a loss on one view of each modality and two fused vectors of every pair."""
    return lambda image, text: loss(
        image[None], text[None], torch.stack((image + text, image - text))
    )


def _info_cmr(backend: Backend) -> Loss:
    return partial(functional.info_cmr_loss, backend=backend)


LOSSES: dict[str, dict[str, Loss]] = {
    "max_of_hinges": {"ours": functional.max_of_hinges_loss, "eager": eager.max_of_hinges},
    "sum_of_hinges": {"ours": functional.sum_of_hinges_loss, "eager": eager.sum_of_hinges},
    "info_nce": {
        "ours": partial(functional.info_nce_loss, logit_scale=eager.SCALE),
        "eager": eager.info_nce,
    },
    "sigmoid": {
        "ours": partial(functional.sigmoid_loss, logit_scale=eager.SCALE, logit_bias=eager.BIAS),
        "eager": eager.sigmoid,
    },
    "intra_modal cosine": {
        "ours": _first(functional.intra_modal_constraint),
        "eager": _first(eager.intra_modal),
    },
    "intra_modal l1": {
        "ours": _first(partial(functional.intra_modal_constraint, metric="l1")),
        "eager": _first(partial(eager.intra_modal, metric="l1")),
    },
    "imc loss": {"ours": functional.imc_loss, "eager": eager.imc},
    "itm loss": {"ours": ours.itm, "eager": eager.itm},
    "ito loss": {"ours": _ito(ours.ito), "eager": _ito(eager.ito)},
    "info_cmr loss": {"ours": _info_cmr("auto"), "reference": _info_cmr("reference")},
}


def step(loss: Loss, leaves: tuple[Tensor, ...]) -> None:
    """Run forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    loss(*(leaf.requires_grad_() for leaf in leaves)).backward()


def measure(loss: Loss, leaves: tuple[Tensor, ...], device: str) -> dict[str, Any]:
    """Return the median time of a step and its peak memory."""
    times: list[float] = []

    def timed() -> None:
        times.append(seconds(lambda: step(loss, leaves), device))

    peak = memory.peak(timed, device)
    for _ in range(0 if times[0] > ENOUGH else REPEATS):
        timed()
    return {"seconds": statistics.median(times), "peak_memory": peak}


def worker(
    loss: Loss, rows: list[int], D: int, device: str, longest: float
) -> Iterator[dict[str, Any]]:
    """Measure one loss at ascending sizes, until one fails or would take too long."""
    # The first call of the libraries allocates memory that is not the loss's.
    step(loss, inputs.paired(Size(SETTLED, D), device))
    spent = 0.0
    for place, N in enumerate(rows):
        growth = (N / rows[place - 1]) ** 2 if place else 0.0
        if spent * growth > longest:
            yield {"N": N, "status": f"not run: about {spent * growth:.0f} s expected"}
            return
        try:
            found = measure(loss, inputs.paired(Size(N, D), device), device)
        except Exception as error:
            status = "out of memory" if memory.is_out_of_memory(error) else f"fails: {error}"
            yield {"N": N, "status": status[:200]}
            return
        spent = found["seconds"] if N >= FITTED_FROM else 0.0
        yield {"N": N, **found}


def in_a_process(
    name: str, contender: str, rows: tuple[int, ...], D: int, device: str, setting: dict[str, str]
) -> list[dict[str, Any]]:
    """Run `worker` in a fresh process. A killed process has run out of memory."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--device", device, "--worker"]
    command += [name, contender, str(D), *map(str, rows)]
    environment = os.environ | setting | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        left = [N for N in rows if N > (points[-1]["N"] if points else 0)]
        status = "out of memory (killed)" if done.returncode < 0 else "fails"
        points += [{"N": N, "status": status} for N in left[:1]]
    return points


def in_this_process(
    name: str, contender: str, rows: tuple[int, ...], D: int, device: str, setting: dict[str, str]
) -> list[dict[str, Any]]:
    """Run `worker` here, without `setting`, on memory that earlier losses have freed."""
    return list(worker(LOSSES[name][contender], list(rows), D, device, LONGEST))


def exponent(points: list[dict[str, Any]], field: str) -> float | None:
    """Return the slope of log(field) over log N by least squares, None with fewer than 3 points."""
    found = [
        (math.log(p["N"]), math.log(p[field]))
        for p in points
        if p.get(field) and p["N"] >= FITTED_FROM
    ]
    if len(found) < 3:
        return None
    return statistics.linear_regression(*zip(*found, strict=True)).slope


def study(store: results.Results, device: str, resume: bool, quick: bool, only: str | None) -> None:
    """Run both studies, or one of them, and store every finished curve."""
    kinds = {"scaling": STUDY, "memory": ((MEMORY[0],), MEMORY[1])}
    kinds = {name: kind for name, kind in kinds.items() if only in (None, name)}
    if quick:
        kinds = {"scaling": ((32, 64), 8)}  # the other study runs the same code
    run = in_a_process
    for section, (rows, D) in kinds.items():
        setting = NO_HOLES if section == "memory" else {}
        for name, contenders in LOSSES.items():
            if resume and name in store.section(section):
                continue
            record: dict[str, Any] = {"D": D}
            for contender in contenders:
                # A quarter of the batch predicts whether a rival's whole batch takes too long.
                first = () if contender == "ours" or len(rows) > 1 else (rows[0] // 4,)
                points = run(name, contender, first + rows, D, device, setting)
                record[contender] = {
                    "points": points,
                    "time_exponent": exponent(points, "seconds"),
                    "memory_exponent": exponent(points, "peak_memory"),
                }
                last = points[-1] if points else {}
                print(f"{section} {name} {contender}: {results.rounded(last)}", flush=True)
                if quick:
                    assert "seconds" in last, f"{name} {contender}: {last}"
                    run = in_this_process  # torch starts in 2 s; the memory is not used
            store.add(section, name, record)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only check that it runs")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    parser.add_argument("--only", choices=("scaling", "memory"), help="one of the two studies")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        name, contender, D, *rows = parsed.worker
        if parsed.device == "cpu":
            memory.forbid_more_than_there_is()
        longest = LONGEST if contender == "ours" else LONGEST_OF_RIVAL
        sizes = list(map(int, rows))
        for point in worker(LOSSES[name][contender], sizes, int(D), parsed.device, longest):
            print(json.dumps(point), flush=True)
        return
    facts = results.machine(parsed.device, torch.get_num_threads())
    store = results.Results(parsed.results / f"{results.name(facts)}.json")
    # The same file holds the rows, so a study never clears it.
    store.begin(facts, rivals.versions(), resume=True)
    study(store, parsed.device, parsed.resume, parsed.quick, parsed.only)


if __name__ == "__main__":
    main()
