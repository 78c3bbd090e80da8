"""Losses of a batch that is spread over the ranks of a process group.

Every loss takes `group=`. Each rank passes its own rows, and ids where the loss has them; the batch
is their concatenation in rank order. Numbers of rows may differ, and may be 0.

- Every rank gets the loss of the global batch, the same bits; `reduction="none"` returns the values
  of the rank's own texts in the global batch.
- `gradients="mean"` gives local inputs W times the derivative of the global loss, W the number of
  ranks: averaged over ranks (DistributedDataParallel, FSDP), the gradient of a parameter is that of
  one process with the whole batch. `"sum"` gives the derivative itself. A learnable scale or bias
  follows the same rule, so the loss must be wrapped together with the model, or its parameters
  averaged like the model's.
- Ranks that pass different options, dtypes or widths raise the same error before rows are sent. If
  an argument of one rank is invalid, that rank raises its error, the others RuntimeError with it.
- A group of one rank gives the bits of `group=None`.
"""

from itm_kernels.distributed._fetch import fetch

__all__ = ["fetch"]
