"""Max and sum of hinges. Least work: the products over all pairs.

Max of hinges needs one product, forward; its gradient gathers the hardest rows. Sum of hinges and
the softmax losses need one product forward and two backward.
"""

from functools import partial

import pytest
import torch

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, packages, plain
from benchmarks.shapes import LARGE, PAPERS, USUAL, sizes
from itm_kernels import functional

FP32, BF16 = sizes(PAPERS, USUAL, LARGE), sizes(USUAL, LARGE, dtype=torch.bfloat16)


@pytest.mark.parametrize("size", FP32 + BF16, ids=str)
def bench_max_of_hinges(compare, sized, compiled, device, size):
    size = sized(size)
    image, text = inputs.paired(size, device)
    product = 2.0 * size.N * size.N * size.D
    row = Row(
        "max_of_hinges",
        size,
        (image, text),
        Work("product", product, 4.0 * size.N * size.D),
        facts=inputs.violations(image, text, eager.MARGIN),
    )
    compare(
        row,
        functional.max_of_hinges_loss,
        eager.max_of_hinges,
        eager=plain(eager.max_of_hinges),
        compile=compiled(eager.max_of_hinges),
        metric_learning=partial(packages.metric_learning_hinges, hardest=True),
    )


@pytest.mark.parametrize("size", FP32, ids=str)
def bench_sum_of_hinges(compare, sized, compiled, device, size):
    size = sized(size)
    image, text = inputs.paired(size, device)
    product = 2.0 * size.N * size.N * size.D
    row = Row(
        "sum_of_hinges",
        size,
        (image, text),
        Work("product", product, 2 * product),
        facts=inputs.violations(image, text, eager.MARGIN),
    )
    compare(
        row,
        functional.sum_of_hinges_loss,
        eager.sum_of_hinges,
        eager=plain(eager.sum_of_hinges),
        compile=compiled(eager.sum_of_hinges),
        metric_learning=partial(packages.metric_learning_hinges, hardest=False),
    )
