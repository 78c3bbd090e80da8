"""The table of bytes in docs/distributed.md: our formulas, and those of other projects' code."""

from itm_kernels.distributed._traffic import MESSAGES, Bytes, Sizes, circulated, gathered

SIZES = Sizes(W=8, n=4096, m=4096, N=8 * 4096, D=1024, size=2)


def others(sizes: Sizes) -> dict[str, Bytes]:
    """Return what other implementations send, counted from their code."""
    hop = (sizes.W - 1) * sizes.n * sizes.D * sizes.size
    # Inf-CL sends fp32 shards around a ring, for each of two directions.
    shard = 4 * sizes.n * sizes.D
    infcl = Bytes(2 * (sizes.W - 1) * shard, 2 * (2 * sizes.W - 1) * shard)
    return {
        "open_clip `ClipLoss`, `gather_with_grad=True`": Bytes(2 * hop, 2 * hop),
        "open_clip `ClipLoss`, `gather_with_grad=False`": Bytes(2 * hop, 0),
        "open_clip `SigLipLoss`, any but `reduce`": Bytes(hop, hop),
        "Inf-CL": infcl,
    }


def rows() -> list[str]:
    """Return the rows of the table."""
    found = {}
    for name, messages in MESSAGES.items():
        found[f"`{name}`, `gather`"] = gathered(messages, SIZES)
    for name in ("info_nce_loss", "sigmoid_loss"):
        found[f"`{name}`, `ring`"] = circulated(MESSAGES[name], SIZES)
    found.update(others(SIZES))
    return [
        f"| {name} | {sent.forward / 1e6:.1f} | {sent.backward / 1e6:.1f} | {sent.both / 1e6:.1f} |"
        for name, sent in found.items()
    ]


if __name__ == "__main__":
    print("\n".join(rows()))
