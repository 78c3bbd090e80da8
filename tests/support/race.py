"""Run every loss once on four threads, under the thread sanitizer (`make races`).

This is a script and not a test, since the suite runs on one thread.
"""

import torch

from itm_kernels import ops
from loss_cases import CASES, batch, gradients

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
print(f"{len(CASES)} losses on {torch.get_num_threads()} threads")
