"""Device functions of the log-sum-exp kernel: exponentials, and logits in pieces of 64 columns."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from itm_kernels.triton.gluon._pipeline import HALF, WARPS

INF = gl.constexpr(float("inf"))
_LOG2_E = gl.constexpr(1.4426950408889634)
NOBODY = gl.constexpr(-1)  # a column whose positive is not in the tile
OUTSIDE = gl.constexpr(-2)  # a column beyond the last
SPREAD = gl.constexpr(60.0)  # as in `triton._log_sums`


@gluon.jit
def exp(logits):
    """Return exponentials; values below 2^-126 are flushed to 0, which saves three instructions."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [logits * _LOG2_E],
        dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def logarithm(total):
    empty = total == 0
    return gl.where(empty, -INF, gl.log(gl.where(empty, 1.0, total)))


@gluon.jit
def finite_or(values, other):
    return gl.where(gl.abs(values) < INF, values, other)


@gluon.jit
def shift_of(largest):
    # An infinite maximum would give inf - inf. With a shift of 0 infinities pass through.
    return gl.where(gl.abs(largest) == INF, 0.0, largest)


@gluon.jit
def _halves(logits):
    WIDTH: gl.constexpr = logits.shape[1] // 2
    return logits.reshape((HALF, 2, WIDTH)).permute((0, 2, 1)).split()


@gluon.jit
def masked_logits(
    scores, n, x_id, scratch, N, masked, here, first: gl.constexpr,
    FACTORS: gl.constexpr, HAS_IDS: gl.constexpr, OF_POSITIVE: gl.constexpr,
):  # fmt: skip
    """Return masked logits, in pieces of 64 columns, and store the maxima of every warp's rows.

    Ids and factors of more columns do not fit the registers.
    """
    WIDTH: gl.constexpr = scores.shape[1]
    if WIDTH > 64:
        left, right = _halves(scores)
        left = masked_logits(
            left, n, x_id, scratch, N, masked, here, first, FACTORS, HAS_IDS, OF_POSITIVE
        )
        right = masked_logits(
            right, n, x_id, scratch, N, masked, here, first + WIDTH // 2,
            FACTORS, HAS_IDS, OF_POSITIVE,
        )  # fmt: skip
        return gl.join(left, right).permute((0, 2, 1)).reshape((HALF, WIDTH))
    else:
        highest, sums, ids, factors, owners = scratch
        rows: gl.constexpr = gl.SliceLayout(1, scores.type.layout)
        columns: gl.constexpr = gl.SliceLayout(0, scores.type.layout)
        n = gl.convert_layout(n, rows, assert_trivial=True)
        if FACTORS:
            scores *= factors.slice(first, WIDTH).load(columns).expand_dims(0)
        if OF_POSITIVE:
            if here:
                owner = owners.slice(first, WIDTH).load(columns)
                own = gl.where(n.expand_dims(1) == owner.expand_dims(0), scores, 0.0)
                sums.slice(first, WIDTH, 1).store(gl.sum(own.reshape((WARPS, 16, WIDTH)), 1))
        if masked:
            off = (owners.slice(first, WIDTH).load(columns) == OUTSIDE).expand_dims(0)
            off |= (n >= N).expand_dims(1)
            if HAS_IDS:
                of_rows = gl.convert_layout(x_id, rows, assert_trivial=True)
                of_columns = ids.slice(first, WIDTH).load(columns)
                off |= of_rows.expand_dims(1) == of_columns.expand_dims(0)
            scores = gl.where(off, -INF, scores)
        highest.slice(first, WIDTH, 1).store(gl.max(scores.reshape((WARPS, 16, WIDTH)), 1))
        return scores


@gluon.jit
def store_sums(values, sums, first: gl.constexpr, OWN: gl.constexpr):
    """Store the sums of a warp's rows: of values, or of exp(logit - maximum of the rows) if OWN."""
    WIDTH: gl.constexpr = values.shape[1]
    if WIDTH > 64:
        left, right = _halves(values)
        store_sums(left, sums, first, OWN)
        store_sums(right, sums, first + WIDTH // 2, OWN)
    else:
        values = values.reshape((WARPS, 16, WIDTH))
        if OWN:
            values = exp(values - shift_of(gl.max(values, 1)).expand_dims(1))
        sums.slice(first, WIDTH, 1).store(gl.sum(values, 1))
