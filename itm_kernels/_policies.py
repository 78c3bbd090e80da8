"""Choices between algorithms of one backend: what is chosen, when and why, in one table.

`backends.py` chooses the backend. The choices that the autograd functions of the operators make are
defined here; those of compiled kernels are made in the file that the table names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels.backends import NAMESPACES


class Policy(NamedTuple):
    """A choice between algorithms of one backend."""

    name: str
    choice: str
    reason: str
    file: str  # of a checkout
    code: str  # in it, that decides


# Namespaces whose operators normalise rows themselves, if their argument `cosine` is set.
NORMALISES_ROWS = (NAMESPACES["triton"],)
# Namespaces that form the gradients of a whole loss in its forward pass.
GRADIENTS_IN_FORWARD = (NAMESPACES["triton"],)
# Namespaces with kernels for ranks from counts and for keys of rows.
RANKS_IN_KERNEL = (NAMESPACES["triton"],)
# Scores up to this size are kept.
KEPT_BYTES = 64 << 20
# Products of words and regions up to this size are kept: 128 images with 36 regions and 128 texts
# with 50 words take 113 MiB in fp32. Computing them again would be a quarter of a step.
KEPT_PRODUCTS = 128 << 20


def keeps_scores(namespace: str, x: Tensor, y: Tensor) -> bool:
    """Return whether a forward pass keeps its scores `[N, M]` for the backward pass.

    Triton recomputes them, in memory that grows with N + M only. Counted for InfoNCE at D = 1024,
    with the rates of an H200 in the cost sheet: scores kept in fp32 would save 12 % of a step in
    bf16 at N = 4,096 (16 % in fp32) and 17 % (19 %) at 16,384, for 67 MB and 1.1 GB, which is what
    eager PyTorch keeps. 16 bits per score would save 15 % (17 %) and 20 % (21 %), but then the
    error of fp32 gradients is more than 100 times the allowed one, and that of bf16 gradients at
    scale 100 is 1.6 times (fp16 scores) to 18 times (fp16 exponentials) the allowed one. bf16
    exponentials relative to a row's highest logit stay within the bound, for bf16 rows only.
    """
    if namespace == NAMESPACES["triton"]:
        return False
    size = 8 if x.dtype == torch.float64 else 4
    return x.shape[0] * y.shape[0] * size <= KEPT_BYTES


def keeps_winners(context: Tensor, query: Tensor) -> bool:
    """Return whether late interaction keeps the best context row `[N, M, Q]` of every query row.

    They take 2 bytes where the products take 4 C, and save the backward pass a product of all rows.
    """
    (N, C, _), (M, Q, _) = context.shape, query.shape
    return N * M * Q * 2 <= KEPT_BYTES and C < 2**15


def keeps_products(context: Tensor, query: Tensor) -> bool:
    """Return whether cross attention keeps the products of all rows for the backward pass.

    In Triton they are two chunks, one of which the backward pass would compute and hold again.
    """
    size = 8 if context.dtype == torch.float64 else 4
    (N, C, _), (M, Q, _) = context.shape, query.shape
    return N * C * M * Q * size <= KEPT_PRODUCTS


def keeps_synthesis_scores(namespace: str, operator: str, anchors: Tensor, members: Tensor) -> bool:
    """Return whether a synthesis keeps its scores `[N, M]`; CUDA kernels recompute the softmax.

    The output of `rbf_synthesis_logits` is `[N, K]`. Scores larger than the inputs would be half of
    the memory of a loss (InfoCMR, 4,096 x 256: 128 of 257 MiB) and save no measurable time.
    """
    (N, D), M = anchors.shape, members.shape[0]
    if anchors.device.type != "cpu":
        return False
    if operator == "rbf_synthesis_logits" and N * M > (N + M) * D:
        return False
    return keeps_scores(namespace, anchors, members)


def keeps_band_mask(x: Tensor, metric: str, mode: str) -> bool:
    """Return whether the pairs inside a band are kept as a bit mask.

    The bounds must be the same for all rows, and the mask no larger than x `[N, D]` in fp32, so
    that memory stays O(N D).
    """
    N, D = x.shape
    return (mode != "official" or metric == "cosine") and N <= 32 * D


# Rows of all ranks up to this size are gathered.
GATHERED_BYTES = 64 << 20


def goes_round(exchange: str, total: int, rows: Tensor) -> bool:
    """Return whether rows `[n, D]`, of `total` over all ranks, travel around a ring."""
    if exchange == "auto":
        return total * rows.shape[1] * rows.element_size() > GATHERED_BYTES
    return exchange == "ring"


# Rows of another rank that a ring processes at once on a CPU.
RING_ROWS = 1024


def rows_at_once(rows: Tensor, number: int) -> int:
    """Return how many of a number of rows are processed at once, when they visit another rank.

    Kernels on CPUs keep the scores and the unit rows of what they are given. On a GPU, smaller
    products would leave multiprocessors idle, and nothing of the size of the scores is kept.
    """
    return RING_ROWS if rows.device.type == "cpu" else max(1, number)


# Scores that a ring holds at once, unless a quarter of the own rows has more elements.
RING_SCORES = 1 << 20


def scored_at_once(own: Tensor) -> int:
    """Return how many visiting rows are scored at once with own rows `[n, D]`, if scores are kept.

    About six tensors of the size of the scores exist at a time.
    """
    n, D = own.shape
    return max(D // 4, RING_SCORES // max(1, n), 1)


_HERE = "itm_kernels/_policies.py"
_CPU, _CUDA, _TRITON = "csrc/cpu", "csrc/cuda", "itm_kernels/triton"
POLICIES = (
    Policy(
        "kept scores",
        "native kernels keep the scores of a forward pass up to 64 MiB; Triton recomputes them",
        "the backward pass takes one product less; beyond, memory stays O(N D)",
        *(_HERE, "KEPT_BYTES = 64 << 20"),
    ),
    Policy(
        "kept synthesis scores",
        "native CPU kernels keep the scores of a synthesis, for cosines up to the inputs' size",
        "larger scores would be half of the memory of InfoCMR and save no measurable time",
        *(_HERE, "keeps_synthesis_scores"),
    ),
    Policy(
        "kept winners",
        "late interaction keeps the index of the best match of every row up to 64 MiB",
        "2 bytes for C products; the backward pass then adds rows and needs no product",
        *(_HERE, "keeps_winners"),
    ),
    Policy(
        "kept products",
        "cross attention keeps the products of all rows for the backward pass up to 128 MiB",
        "the backward pass takes one product less; beyond, memory is that of a chunk",
        *(_HERE, "keeps_products"),
    ),
    Policy(
        "exchange",
        "with group=, rows of all ranks are gathered up to 64 MiB; beyond, they go round a ring",
        "a gather needs fewer messages and one product less; a ring needs memory for two blocks",
        *(_HERE, "goes_round"),
    ),
    Policy(
        "rows of a ring",
        "on CPUs, a block of rows that visits a rank is processed in parts of 1,024 rows",
        "scores and unit rows of a part are kept, not those of the block",
        *(_HERE, "rows_at_once"),
    ),
    Policy(
        "scores of a ring",
        "losses that hold the scores of visiting rows take 2^20, or a quarter of the own rows",
        "six tensors of that size exist at a time; those of a block would exceed its rows",
        *(_HERE, "scored_at_once"),
    ),
    Policy(
        "kept band",
        "the pairs inside a band are kept as bits if N <= 32 D and all rows have the same bounds",
        "the backward pass compares no rows again; the bits are no larger than the rows in fp32",
        *(_HERE, "keeps_band_mask"),
    ),
    Policy(
        "normalisation in the kernel",
        "Triton's operators of cosines read rows of any norm; other backends read unit rows",
        "products of half-precision rows are exact on tensor cores; unit rows would be rounded",
        *(_HERE, "NORMALISES_ROWS"),
    ),
    Policy(
        "gradients in the forward pass",
        "Triton forms the gradients of a whole sigmoid loss in its forward pass",
        "three products instead of four, without scores in memory",
        *(_HERE, "GRADIENTS_IN_FORWARD"),
    ),
    Policy(
        "ranks in one kernel",
        "Triton computes ranks from counts, and keys of rows, in one kernel each",
        "one launch instead of dozens",
        *(_HERE, "RANKS_IN_KERNEL"),
    ),
    Policy(
        "bf16 screening",
        "on CPUs with AVX512_BF16, bf16 products select candidates for hardest negatives of fp32 "
        "rows, from 128 rows, 256 columns and 65,536 elements on",
        "0.7 times the time at 128 rows of 1,024, as long at 192 of 256, 1.2 times at 128 of 256",
        *(f"{_CPU}/screening.cpp", "kLeastRows = 128"),
    ),
    Policy(
        "fp16 screening",
        "in Triton, fp16 products select candidates for hardest negatives of fp32 rows, from "
        "2,048 rows on; not on AMD GPUs",
        "the products that it saves outweigh its seven launches",
        *(f"{_TRITON}/_screening.py", "LEAST_ROWS = 2048"),
    ),
    Policy(
        "library similarities",
        "in Triton, dot products of fp16, bf16 and fp64 rows are the library's from 2^22 pairs on",
        "47 us instead of 63 at 4,096 x 4,096 x 1,024 in bf16; smaller ones may be split along D",
        *(f"{_TRITON}/similarity.py", "LIBRARY_PAIRS = 1 << 22"),
    ),
    Policy(
        "close pairs",
        "in Triton, distances below an eighth of |x|^2 + |y|^2 are computed again from differences",
        "products leave them three bits less, 4e-6 of the distance; a twin of a row must have 0",
        *(f"{_TRITON}/_close_distances.py", "_CLOSE = tl.constexpr(1 / 8)"),
    ),
    Policy(
        "Gluon",
        "on sm_90, the kernels in gluon.PROVEN replace Triton's from 4,096 rows of 256 columns on",
        "predicted from counts; a kernel is proven once its values and times are measured on a GPU",
        *(f"{_TRITON}/gluon/__init__.py", "LEAST_ROWS = 4096"),
    ),
    Policy(
        "sort by comparison",
        "in Triton, up to 8,192 ids or entries are sorted by comparing all pairs",
        "one launch instead of ten or twenty; at 8,192 it takes as long as those",
        *(f"{_TRITON}/_id_order.py", "_FEW = 8192"),
    ),
    Policy(
        "cluster sizes on the host",
        "in Triton, KAM reads the sizes of clusters on the host if factors may exceed 512 MiB",
        "the factors then have their exact sizes; below, nothing waits for the device",
        *(f"{_TRITON}/_cluster_batches.py", "SYNC_FREE_BYTES = 512 << 20"),
    ),
    Policy(
        "stored bands",
        "on CUDA, native kernels store the scores of cosine and l2 bands up to 1,024 rows",
        "for few rows a launch costs more than its computation",
        *(f"{_CUDA}/distances/intra_modal_binding.cpp", "rows() <= kMostRows"),
    ),
    Policy(
        "KAM in shared memory",
        "on CUDA, systems of up to 64 members are solved in shared memory, others in global memory",
        "8 clusters of a batch of 128 have 16 members on average",
        *(f"{_CUDA}/small_batch/kam_solve.cuh", "kSmallSystem = 64"),
    ),
    Policy(
        "cosines from the Gram matrix",
        "on CPUs, cosines of a synthesis come from the Gram matrix unless weights cancel 32-fold",
        "beyond, the rounding of scores is magnified; vectors that are formed average it out",
        *(f"{_CPU}/rbf_synthesis_logits.cpp", "kMostCancellation = 32"),
    ),
    Policy(
        "cross attention in fp64",
        "on CPUs, fp32 query rows for which the terms of |attended|^2 may cancel 9-fold use fp64",
        "a Gram matrix in fp32 would have no digits left for almost opposite context rows",
        *(f"{_CPU}/simd/stacked_attention.inl", "if (!(4 * square[w] <"),
    ),
    Policy(
        "pairs with a gradient",
        "on CPUs, the backward pass of cross attention goes pair by pair if at most an eighth of a "
        "tile's scores have a gradient",
        "losses of hardest negatives leave out most pairs: with two per row, 128 x 36 regions and "
        "128 x 20 words of 1,024 take a tenth of the time, and a quarter if an eighth is left",
        *(f"{_CPU}/cross_attention.cpp", "kPairsPerGradient = 8"),
    ),
    Policy(
        "k-means from the Gram matrix",
        "on CPUs, B > 1 problems with M <= min(1,024, K D / 2, B K) use products of all rows",
        "512 problems, K = 8, D = 1024: 5 times as fast at M = 512, 5 times as slow at M = 2,048",
        *(f"{_CPU}/kmeans.cpp", "M <= B * K && M <= 1024 && 2 * M <= K * D"),
    ),
)
