"""Benchmark against torch.compile and the installed packages, at further sizes too."""

from functools import partial
from itertools import product

import torch

from benchmarks.rivals import keops
from benchmarks.shapes import Size
from tools.gpu_check.bench import open_results, race, rows
from tools.gpu_check.goal_table import ENTRIES
from tools.gpu_check.journal import Check, Setting

# (rows, width), most informative first. Sizes of the goal table are repeated with all contenders.
SIZES = ((4096, 1024), (32768, 1024), (128, 1024), (16384, 1024), (1024, 1024), (16384, 512))
LOSSES = ("info_nce", "max_of_hinges", "sigmoid", "intra_modal cosine", "imc", "sum_of_hinges")
PREDICTED = 20.0  # seconds on an H200: inductor compiles the formula


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per row."""
    store = open_results(setting)
    if setting.tiny:
        keops.compile_quickly()
        chosen = [(name, size) for name, size in rows(True) if name in LOSSES[:2]]
    else:
        dtypes = torch.bfloat16, torch.float32
        chosen = [
            (name, Size(*shape, dtype))
            for shape, dtype, name in product(SIZES, dtypes, LOSSES)
            if dtype in ENTRIES[name].dtypes
        ]
    return [
        Check(
            f"rivals/{name}/{size}",
            partial(race, name, size, setting, store, others=True),
            predicted=PREDICTED,
        )
        for name, size in chosen
    ]
