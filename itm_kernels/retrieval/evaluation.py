"""Evaluation of retrieval in both directions: checks, ids and folds."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks
from itm_kernels._public import UnnamedValueError, public
from itm_kernels._warnings import warn
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.ops._ranks import Ranks, fused_ranks, row_keys
from itm_kernels.retrieval._inputs import (
    METRICS,
    Rows,
    check_finite,
    check_folds,
    check_ks,
    check_positives,
    for_metric,
    ids_of_layout,
)
from itm_kernels.retrieval._over_ranks import check_layout, gather, ranked_in_shares
from itm_kernels.retrieval.report import (
    RetrievalReport,
    mean,
    report,
    warn_of_large_ks,
    warn_of_scores,
)

_FUNCTION = "evaluate"
_FINITE = 'scale the rows down, or pass metric="cosine" or double precision'


@public
@torch.no_grad()
def evaluate(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    *,
    metric: str = "dot",
    image_ids: Tensor | None = None,  # [N]
    text_ids: Tensor | None = None,  # [M]
    ks: Sequence[int] = (1, 5, 10),
    folds: int = 1,
    group: ProcessGroup | None = None,
) -> RetrievalReport:
    r"""Measure how well images retrieve their texts, and texts their images.

    .. math:: r_i = 1 + a_i + t_i / 2, \quad
        R@k = \frac{100}{N} \sum_i \left[1 - \binom{t_i}{k - a_i} \Big/
            \binom{t_i + p_i}{k - a_i}\right]

    Among the candidates of query i, :math:`a_i` score above its best positive, and :math:`t_i`
    negatives and :math:`p_i` positives tie with it. The bracket is 0 for k < :math:`a_i` and 1 for
    k > :math:`a_i + t_i`. Median and mean rank are those of :math:`r_i`, the middle rank. R@k and
    MRR, the mean of 1 / rank, are expectations over all orders of the tied candidates. Without ties
    these are the usual metrics. An encoder whose rows are all equal scores chance.

    Choose the metric by the loss: ``metric="cosine"`` for a model trained on cosines (InfoNCE,
    InfoCMR, the sigmoid loss, ITO), and ``"dot"`` for a model trained on dot products (the hinge
    losses). For rows of norm 1 both are the same. Float16 and bfloat16 are scored in float32.
    `evaluate_scores` takes scores that are no products of embeddings.

    Args:
        image: ``[N, D]``, one row per image.
        text: ``[M, D]``, one row per text.
        metric: ``"dot"`` scores dot products of the rows as given, ``"cosine"`` those of
            normalised rows; a zero row then scores 0.
        image_ids: ``[N]`` integers; given together with `text_ids`. Without ids, M is a multiple
            of N and text j belongs to image ``j // (M // N)``, the layout of VSE++.
        text_ids: ``[M]`` integers; a text belongs to every image with its id.
        ks: cutoffs k of R@k, each at least 1, without repetition.
        folds: number of folds of consecutive images. Each fold is evaluated with only its own
            texts, and every metric is the mean over folds: ``folds=5`` is the MSCOCO protocol with
            1,000 images per fold. Numbers of ties are summed.
        group: a process group over whose ranks the rows are spread. Every rank passes its own rows,
            and ids if given, and gets the same report of all rows in rank order; it may have no
            rows. Rows are gathered, and every rank scores an equal share of the queries. Without
            ids, M / N is the same on every rank with images. None: this process has all rows.

    Returns:
        Recalls in percent, median ranks, mean ranks, MRR and the number of queries with ties, for
        both directions, and the sum of the recalls.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit, `ks` is empty, repeats a number or has one below 1, an
            embedding is not finite, an id appears on one side only, or `folds` does not divide N;
            with a group, ranks pass different options or dtypes.
        RuntimeError: another rank of the group raised an error.

    Warns:
        UserWarning: a k exceeds the number of candidates; rows without ids come in runs of equal
            rows, as if an image were repeated for each of its texts; or products of finite rows are
            not finite. A positive with such a score ranks behind all negatives. Of a group, rank 0
            warns.

    Source: Faghri et al., VSE++, 2018, section 4; the rank of a query is the best of its positives.

    Example:
        >>> import torch
        >>> from itm_kernels.retrieval import evaluate
        >>> image = torch.eye(3)
        >>> text = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 1.0]])
        >>> print(evaluate(image, text, metric="cosine", ks=(1, 2)))
                           R@1     R@2  median rank  mean rank     MRR
        image to text    100.0   100.0          1.0        1.0   1.000
        text to image     66.7   100.0          1.0        1.3   0.833
        R-sum 366.7
    """
    agreement = None if group is None else Agreement(group, "sum", "gather")
    if agreement is None or agreement.size == 1:
        image, text = _checks.embeddings(image=image, text=text)
        _check_options(metric, ks, folds)
        check_folds(folds, len(image), "rows of image")
        check_finite(image=image, text=text)
        return _evaluate(image, text, metric, image_ids, text_ids, ks, folds, _ranks, True)
    ids = image_ids, text_ids
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        _check_options(metric, ks, folds)
        check_finite(image=image, text=text)
        _checks.id_pair(("image_ids", "text_ids"), ids, (image, text))
        optional = {"image_ids": image_ids, "text_ids": text_ids}
        options = {"metric": metric, "ks": tuple(ks), "folds": folds}
        agreement.describe(_FUNCTION, {"image": image, "text": text}, optional, **options)
    if image_ids is None:
        check_layout(agreement)
    image, text, image_ids, text_ids = gather(agreement, image, text, *ids)
    check_folds(folds, len(image), "rows of image")
    ranked = ranked_in_shares(_ranks, agreement)
    tells = agreement.rank == 0
    return _evaluate(image, text, metric, image_ids, text_ids, ks, folds, ranked, tells)


def _check_options(metric: str, ks: Sequence[int], folds: int) -> None:
    _checks.option("metric", metric, METRICS)
    check_ks(ks)
    _checks.integer("folds", folds, 1)


def _evaluate(
    image: Tensor,
    text: Tensor,
    metric: str,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    ks: Sequence[int],
    folds: int,
    ranks: Callable[[Rows, Rows], Ranks],
    tells: bool,  # whether this process issues the warnings
) -> RetrievalReport:
    keys = row_keys(image), row_keys(text)
    if tells and image_ids is None and text_ids is None:
        _warn_of_runs("image", keys[0])
        if len(image) == len(text):
            _warn_of_runs("text", keys[1])
    image_ids, text_ids = _ids(image, text, image_ids, text_ids)
    sides = (
        (for_metric(image, metric), image_ids, keys[0]),
        (for_metric(text, metric), text_ids, keys[1]),
    )
    ranked = [(ranks(v, c), ranks(c, v)) for v, c in _folds(sides, folds)]
    if tells:
        warn_of_large_ks(_FUNCTION, ks, ranked)
        warn_of_scores(_FUNCTION, ranked, _FINITE)
    return mean([report(images, texts, ks) for images, texts in ranked])


def _ids(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return checked ids on the device; without ids, those of the VSE++ layout."""
    names, sides = ("image_ids", "text_ids"), (image, text)
    image_ids, text_ids = _checks.id_pair(names, (image_ids, text_ids), sides)
    if image_ids is None or text_ids is None:
        if len(text) % len(image):
            raise UnnamedValueError(
                f"text {list(text.shape)} is not a multiple of image "
                f"{list(image.shape)} in rows; pass image_ids and text_ids"
            )
        return ids_of_layout(len(image), len(text), image.device)
    check_positives(image_ids, text_ids)
    return image_ids, text_ids


def _warn_of_runs(name: str, keys: Tensor) -> None:
    """Warn of repeated rows, as in the arrays of VSE++: one image row for every caption."""
    first = torch.cat((keys.new_ones(1, dtype=torch.bool), keys[1:] != keys[:-1]))
    rows, distinct = len(keys), int(first.sum())
    # A few equal rows occur by chance or in a failing encoder; if all are equal, the encoder is
    # constant. Neither case means copies, and the report counts the ties.
    if distinct == 1 or 2 * distinct > rows:
        return
    remedy, runs = "", rows // distinct
    if rows == runs * distinct and bool(first[::runs].all()):
        remedy = f"{name}[::{runs}] or "
    warn(
        f"{_FUNCTION}: {rows - distinct} of {rows} rows of {name} equal the row before; each "
        f"counts as an item of its own. If they are copies, pass {remedy}image_ids and text_ids",
    )


def _folds(sides: tuple[Rows, Rows], folds: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield folds of consecutive images with the texts that share an id with them."""
    image, text = sides
    if folds == 1:
        yield sides
        return
    for chosen in torch.arange(len(image[0]), device=image[0].device).chunk(folds):
        images = image[0][chosen], image[1][chosen], image[2][chosen]
        own = torch.isin(text[1], images[1])
        yield images, (text[0][own], text[1][own], text[2][own])


def _ranks(query: Rows, gallery: Rows) -> Ranks:
    return fused_ranks(query[0], gallery[0], query[1], gallery[1], gallery[2], "auto")
