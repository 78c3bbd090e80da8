"""A model of InfoNCE on a GPU cluster; nothing here is measured.

It counts the products and the bytes sent of each scheme per rank (B rows of width D in bf16; our
gradients travel in fp32) and divides them by the rates below. Ours are counted by the formulas
that `tests/distributed/test_traffic.py` holds to the bytes that ranks send. Latency, stragglers and
everything outside the loss are ignored. A ring is assumed to overlap computing and sending
completely.

Others, in units of B D elements sent per rank, W ranks:
- open_clip with local_loss and gather_with_grad: images and texts are gathered (W - 1 each, bf16)
  and their gradients are reduce-scattered (W - 1 each, bf16 as the rows);
- Inf-CL: each direction sends fp32 rows: W - 1 forward, W - 1 and W gradients backward.
"""

import json
from typing import NamedTuple

from benchmarks.cost_sheet import sheet
from itm_kernels.distributed import _traffic

# One way, bytes per second per GPU, data sheets: NVLink within 8 GPUs, 400 Gbit/s beyond.
NVLINK, NETWORK = 450e9, 50e9
CLUSTERS = (8, 64, 256, 1024)  # GPUs
BATCHES, WIDTH = (1024, 4096, 16384), 1024
_RATE_ROWS = 32768  # rows of the cost sheet's InfoNCE whose rate is used for all schemes


class Scheme(NamedTuple):
    """How a contrastive loss is split over ranks."""

    name: str
    products: float  # of N x N x D / W, forward and backward, in units of 2 N^2 D / W FLOP
    overlaps: bool
    memory: str


# One product forward; backward scores again and two products; a ring forms a block's sums again.
SCHEMES = (
    Scheme("ours, ring", 5, True, "O(B D)"),
    Scheme("ours, gather", 4, False, "O(B D W)"),
    Scheme("open_clip", 6, False, "O(B^2 W + B D W)"),
    Scheme("Inf-CL", 10, True, "O(B D)"),
)


def products_per_second() -> float:
    """Return the FLOP/s that the cost sheet predicts for InfoNCE on an H200, in bf16."""
    row = json.loads(sheet.FILE.read_text())["rows"][f"info_nce/N={_RATE_ROWS},bf16"]
    return float(4 * 2 * _RATE_ROWS**2 * WIDTH / (row["ours"]["ms"] / 1e3))


def volume(scheme: str, W: int, B: int, D: int) -> float:
    """Return the number of bytes that a rank sends in one step."""
    sizes = _traffic.Sizes(W=W, n=B, m=B, N=W * B, D=D, size=2)
    messages = _traffic.MESSAGES["info_nce_loss"]
    if scheme == "ours, ring":
        return _traffic.circulated(messages, sizes).both
    if scheme == "ours, gather":
        return _traffic.gathered(messages, sizes).both
    rows = {"open_clip": 2 * (W - 1) * (2 + 2), "Inf-CL": 2 * (2 * (W - 1) + W) * 4}[scheme]
    return float(rows * B * D)


def step(scheme: Scheme, W: int, B: int, D: int, rate: float) -> tuple[float, float]:
    """Return the seconds of computing and sending of one step."""
    N = W * B
    bandwidth = NVLINK if W <= 8 else NETWORK
    return (
        scheme.products * 2 * N * N * D / W / rate,
        volume(scheme.name, W, B, D) / bandwidth,
    )


def table() -> str:
    """Return the model as Markdown."""
    rate = products_per_second()
    lines = [
        "# Predicted, not measured: InfoNCE on a cluster",
        "",
        "A model. D = 1024, bf16 embeddings. Products run at the rate that the",
        f"cost sheet predicts for InfoNCE on an H200, {rate / 1e12:.0f} TFLOP/s, for every scheme;",
        f"links carry {NVLINK / 1e9:.0f} GB/s one way among 8 GPUs and {NETWORK / 1e9:.0f} GB/s",
        "among more.",
        "`benchmarks/cluster_model.py` states what is counted.",
        "",
        "| GPUs | rows per GPU | scheme | sent per GPU, MB | computing, ms | sending, ms "
        "| step, ms | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for W in CLUSTERS:
        for B in BATCHES:
            for scheme in SCHEMES:
                compute, send = step(scheme, W, B, WIDTH, rate)
                total = max(compute, send) if scheme.overlaps else compute + send
                cells = [f"{W:,}", f"{B:,}", scheme.name]
                cells += [f"{volume(scheme.name, W, B, WIDTH) / 1e6:,.0f}"]
                cells += [_milliseconds(seconds) for seconds in (compute, send, total)]
                lines.append(f"| {' | '.join([*cells, scheme.memory])} |")
    return "\n".join(lines) + "\n"


def _milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}"
