"""A model of contrastive losses on a GPU cluster; nothing here is measured.

It counts the products and the bytes sent of each scheme per rank (B rows of width D, bf16
embeddings, fp32 gradients) and divides them by the rates below. Latency, stragglers and everything
outside the loss are ignored. A ring is assumed to overlap computing and sending completely.

Shards sent per rank and step, in units of B D elements, W ranks:
- ring: the texts travel W - 1 hops in bf16 forward, again backward, and their gradients W in fp32;
- gather: image and text are gathered (W - 1 shards each, bf16) and their gradients are
  reduce-scattered (W - 1 each, fp32);
- Inf-CL: each direction sends fp32 shards: W - 1 forward, W - 1 and W gradients backward.
"""

from typing import NamedTuple

PRODUCT = 585e12  # FLOP/s, bf16 at inner size 1024 on one H200
LINKS = {"8 GPUs, NVLink": (8, 450e9), "64 GPUs, 400 Gbit/s each": (64, 50e9)}  # bytes/s, one way
BATCHES, WIDTH = (1024, 4096, 16384), 1024


class Scheme(NamedTuple):
    """How a contrastive loss is split over ranks."""

    name: str
    products: float  # of N x N x D / W, forward and backward, in units of 2 N^2 D / W FLOP
    overlaps: bool
    memory: str


# The ring forms and recomputes each score once (8 N^2 D against 20 N^2 D); gather
# keeps its rows of the score matrix and computes both directions.
SCHEMES = (
    Scheme("ring", 4, True, "O(B D)"),
    Scheme("gather", 6, False, "O(B^2 W + B D W)"),
    Scheme("Inf-CL", 10, True, "O(B D)"),
)


def volume(scheme: str, W: int, B: int, D: int) -> float:
    """Return the number of bytes that a rank sends in one step."""
    hops = {
        "ring": 2 * (W - 1) * 2 + W * 4,
        "gather": 2 * (W - 1) * (2 + 4),
        "Inf-CL": 2 * (2 * (W - 1) + W) * 4,
    }
    statistics = 8 * (W - 1) * B if scheme == "ring" else 0
    return float(hops[scheme] * B * D + statistics)


def step(scheme: Scheme, W: int, bandwidth: float, B: int, D: int) -> tuple[float, float]:
    """Return the seconds of computing and sending of one step."""
    N = W * B
    return (
        scheme.products * 2 * N * N * D / W / PRODUCT,
        volume(scheme.name, W, B, D) / bandwidth,
    )


def table() -> str:
    """Return the model as Markdown."""
    lines = [
        "# Contrastive losses on a cluster: a model",
        "",
        "Nothing here was measured. D = 1024, bf16 embeddings, fp32 gradients. Assumptions:",
        f"{PRODUCT / 1e12:.0f} TFLOP/s per GPU, and the named links, one way.",
        "`benchmarks/cluster_model.py` states what is counted.",
        "",
        "| cluster | rows per GPU | scheme | sent per GPU, MB | computing, ms | sending, ms "
        "| step, ms | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cluster, (W, bandwidth) in LINKS.items():
        for B in BATCHES:
            for scheme in SCHEMES:
                compute, send = step(scheme, W, bandwidth, B, WIDTH)
                total = max(compute, send) if scheme.overlaps else compute + send
                cells = [cluster, f"{B:,}", scheme.name]
                cells += [f"{volume(scheme.name, W, B, WIDTH) / 1e6:,.0f}"]
                cells += [f"{1000 * value:.3g}" for value in (compute, send, total)]
                lines.append(f"| {' | '.join([*cells, scheme.memory])} |")
    return "\n".join(lines) + "\n"
