"""Every loss once on four threads, for a run under the thread sanitizer (`make races`).

A script and not a test: the suite runs on one thread.
"""

import torch

from itm_kernels import ops
from loss_cases import CASES, batch, gradients

torch.set_num_threads(4)
# 600 rows: several blocks of columns and of rows for every thread; D above the least that is
# screened.
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
