"""The table of bytes in docs/distributed.md: our formulas, and those of other projects' code."""

from itm_kernels.distributed._traffic import (
    MESSAGES,
    Bytes,
    Fetched,
    Sizes,
    circulated,
    circulated_hinges,
    circulated_imc,
    gathered,
    info_cmr,
    itm,
    ito,
)

SIZES = Sizes(W=8, n=4096, m=4096, N=8 * 4096, D=1024, size=2)
# Two hardest negatives per pair, evenly spread over ranks; positives are on the own rank.
NEGATIVES = 2 * SIZES.n * (SIZES.W - 1) // SIZES.W
FETCHED = Fetched(NEGATIVES, NEGATIVES, times=3)
GENERATOR = 5056  # bytes of the state of a generator on a CPU


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
    found["`info_cmr_loss`, synthesis, noise"] = info_cmr(SIZES, False, 8, True, True, GENERATOR)
    found["`ITMLoss`, without its model"] = itm(SIZES, mined=True)
    found["`ITOLoss`, 2 + 2 + 2 views, `gather`"] = ito(2, 2, 2, False, SIZES)
    found["`sum_of_hinges_loss`, `ring`"] = circulated_hinges(None, SIZES)
    found["semi-hard `max_of_hinges_loss`, `ring`"] = circulated_hinges("semihard", SIZES)
    found["`max_of_hinges_loss`, `ring`"] = circulated_hinges("hardest", SIZES, FETCHED)
    found["`imc_loss`, `ring`"] = circulated_imc(SIZES, FETCHED)
    for name in ("intra_modal_constraint", "info_nce_loss", "sigmoid_loss"):
        found[f"`{name}`, `ring`"] = circulated(MESSAGES[name], SIZES)
    found["`info_cmr_loss`, noise, `ring`"] = info_cmr(SIZES, True, 0, True, True, GENERATOR)
    found["`ITOLoss`, 2 + 2 + 2 views, `ring`"] = ito(2, 2, 2, True, SIZES)
    found.update(others(SIZES))
    return [
        f"| {name} | {sent.forward / 1e6:.1f} | {sent.backward / 1e6:.1f} | {sent.both / 1e6:.1f} |"
        for name, sent in found.items()
    ]


if __name__ == "__main__":
    print("\n".join(rows()))
