"""GPU time of every kernel of a step, for every row of the goal table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.interleaved import Run
from benchmarks.limits import seconds
from benchmarks.shapes import Size
from tools.gpu_check.bench import rows
from tools.gpu_check.goal_table import ENTRIES
from tools.gpu_check.journal import Check, Setting, SkippedError

WARM, STEPS = 2, 4
SLOW = 1.0  # seconds of a step that is not profiled
SHOWN, LONGEST = 24, 70  # kernels of a row, characters of a kernel's name


def kernels(run: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return (name, launches, microseconds) of every kernel of one step, the longest first.

    The list of a slow step is empty.
    """
    for _ in range(WARM):
        took = seconds(run, "cuda")
    if took > SLOW:
        return []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            run()
        torch.cuda.synchronize()
    found = [
        (event.key[:LONGEST], event.count / STEPS, event.self_device_time_total / STEPS)
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA and event.self_device_time_total > 0
    ]
    return sorted(found, key=lambda kernel: -kernel[2])


def profiled(name: str, size: Size, setting: Setting) -> dict[str, Any]:
    """Return the kernels of a forward and backward pass of ours and of plain PyTorch."""
    if setting.device != "cuda":
        raise SkippedError("only a GPU has kernels to profile")
    found = ENTRIES[name].prepare(size, setting.device)
    result: dict[str, Any] = {}
    for who, function in (("ours", found.ours), ("eager", found.formula)):
        run = Run(found.row, function, setting.device)

        def step(run: Run = run) -> None:
            run.prepare()
            run.forward()
            if run.row.differentiable:
                output = run.outputs[0]
                run.seed = torch.ones_like(output) if output.dim() else None
                run.backward()

        try:
            listed = kernels(step)
        except torch.cuda.OutOfMemoryError:
            result[who] = "out of memory"
            continue
        result[who] = {
            "us": round(sum(time for *_, time in listed), 1),
            "launches": sum(count for _, count, _ in listed),
            "kernels": [[n, c, round(t, 1)] for n, c, t in listed[:SHOWN]],
        }
        torch.cuda.empty_cache()
    return result


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per row."""
    return [
        Check(f"profile/{name}/{size}", partial(profiled, name, size, setting), predicted=1.5)
        for name, size in rows(setting.tiny)
    ]
