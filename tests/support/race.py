"""Run every loss and score once on four threads, under the thread sanitizer (`make races`).

This is a script and not a test, since the suite runs on one thread.
"""

import torch

from itm_kernels import ops
from loss_cases import CASES, batch, gradients
from sets_of_rows import drawn, graded

torch.set_num_threads(4)
# 600 rows give every thread several blocks of rows and columns. D = 520 is large enough for
# screening, D = 9 is not.
for N, D in ((600, 520), (600, 9)):
    for case in CASES:
        rows = batch(N, D, torch.float32)
        gradients(case.loss(*rows, "auto"), *rows)
    for metric in ("l1", "l2", "cosine"):
        rows = batch(N, D, torch.float32)
        gradients(ops.similarity(*rows, metric).sum(), *rows)
    image, text = (t.detach() for t in batch(N, D, torch.float32))
    ops.ranks(image, text, torch.arange(N), torch.arange(N))
for score in (ops.late_interaction, ops.cross_attention):
    for every in (1, 41):  # all scores have a gradient, and few
        graded(score, drawn((40, 41, 12, 9, 256), counts=True, dtype=torch.float32), every=every)
print(f"{len(CASES)} losses on {torch.get_num_threads()} threads")
