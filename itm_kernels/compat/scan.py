"""The loss and the scores of SCAN (kuanghuei/SCAN): stacked cross attention of words and regions.

Options are SCAN's own: an object with the attributes `cross_attn` ("t2i" or "i2t"),
`raw_feature_norm` ("clipped_l2norm", "l2norm", "clipped", "softmax" or "no_norm"), `agg_func`
("LogSumExp", "Mean", "Max" or "Sum"), `lambda_softmax` and, for "LogSumExp", `lambda_lse`. They are
read at every call.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Aggregate, Backend, Direction, FeatureNorm
from itm_kernels._public import UnnamedTypeError, UnnamedValueError, names_errors
from itm_kernels.compat._hinges import Hinges
from itm_kernels.ops import cross_attention

_NAME = "ContrastiveLoss"
_NORMS: dict[str, FeatureNorm] = {
    "clipped_l2norm": "clipped_l2norm",
    "l2norm": "l2norm",
    "clipped": "clipped",
    "softmax": "softmax",
    "no_norm": "none",
}
_FAILING = ("l1norm", "clipped_l1norm")  # SCAN calls a function that it does not define
_AGGREGATES: dict[str, Aggregate] = {
    "LogSumExp": "log_sum_exp",
    "Mean": "mean",
    "Max": "max",
    "Sum": "sum",
}


class ContrastiveLoss(Hinges):
    """Sum or maximum of hinges of stacked cross attention, summed over the batch.

    Every attribute may be set between steps, and those of `opt` too. Attended vectors are not
    stored.

    Args:
        opt: SCAN's options, described above.
        margin: by how much a positive must outscore a negative.
        max_violation: use only the hardest negative of every anchor.

    Raises:
        TypeError: `margin` is not a number, or the arguments are those of the class of VSE++.

    Source: Lee et al., Stacked Cross Attention, 2018, eqs. 1 to 13, and the code.

    Example:
        >>> import torch
        >>> from argparse import Namespace
        >>> opt = Namespace(cross_attn="t2i", raw_feature_norm="no_norm", agg_func="Mean",
        ...                 lambda_softmax=1.0)
        >>> regions, words = torch.eye(4).view(2, 2, 4), torch.eye(4).view(2, 2, 4)
        >>> ContrastiveLoss(opt, margin=1.0)(regions, words, [2, 1])
        tensor(0.2460)
    """

    def __init__(self, opt: Any, margin: float = 0, max_violation: bool = False) -> None:
        super().__init__(margin, max_violation)
        self.opt = opt

    def _checked(self, name: str, value: Any) -> Any:
        if name == "opt" and (value is None or isinstance(value, (bool, int, float, str, Tensor))):
            raise UnnamedTypeError(
                f"opt must be SCAN's options, got {_checks.describe(value)}; the class with the "
                "arguments (margin, measure, max_violation) is compat.vsepp.ContrastiveLoss"
            )
        return super()._checked(name, value)

    @names_errors(_NAME)
    def forward(
        self,
        im: Tensor,  # [N, R, D]
        s: Tensor,  # [N, L, D]
        s_l: Sequence[int] | Tensor,  # [N]
    ) -> Tensor:
        """Return the loss of the regions of N images, and of the words of their N texts.

        Args:
            im: `[N, R, D]`, R regions of every image.
            s: `[N, L, D]`, the words of every text, padded to L.
            s_l: N numbers of words.

        Raises:
            TypeError: an argument is not a floating-point tensor, or numbers of words are not
                integers.
            ValueError: shapes, devices or options do not fit.
        """
        direction = _option(self.opt, "cross_attn")
        _checks.option("opt.cross_attn", direction, get_args(Direction))
        im, s = _embeddings(im=im, s=s)
        if im.shape[0] != s.shape[0]:
            raise UnnamedValueError(
                f"im {list(im.shape)} and s {list(s.shape)} differ in rows; pass one text per image"
            )
        counts = _counts("s_l", s_l, s)
        scores = _scores(im, s, counts, self.opt, direction, self.backend)
        return self._of_scores(scores, "scores must be square, got")


@names_errors("xattn_score_t2i")
def xattn_score_t2i(
    images: Tensor,  # [N, R, D]
    captions: Tensor,  # [M, L, D]
    cap_lens: Sequence[int] | Tensor,  # [M]
    opt: Any,
) -> Tensor:  # [N, M]
    """Return the scores of words that attend to regions, for all pairs of images and texts.

    Args:
        images: `[N, R, D]`, R regions of every image.
        captions: `[M, L, D]`, the words of every text, padded to L.
        cap_lens: M numbers of words.
        opt: SCAN's options, described above; `cross_attn` is not used.

    Raises:
        TypeError: an argument is not a floating-point tensor, or numbers of words are not integers.
        ValueError: shapes, devices or options do not fit.
    """
    images, captions = _embeddings(images=images, captions=captions)
    counts = _counts("cap_lens", cap_lens, captions)
    return _scores(images, captions, counts, opt, "t2i", "auto")


@names_errors("xattn_score_i2t")
def xattn_score_i2t(
    images: Tensor,  # [N, R, D]
    captions: Tensor,  # [M, L, D]
    cap_lens: Sequence[int] | Tensor,  # [M]
    opt: Any,
) -> Tensor:  # [N, M]
    """Return the scores of regions that attend to words, for all pairs of images and texts.

    Args:
        images: `[N, R, D]`, R regions of every image.
        captions: `[M, L, D]`, the words of every text, padded to L.
        cap_lens: M numbers of words.
        opt: SCAN's options, described above; `cross_attn` is not used.

    Raises:
        TypeError: an argument is not a floating-point tensor, or numbers of words are not integers.
        ValueError: shapes, devices or options do not fit.
    """
    images, captions = _embeddings(images=images, captions=captions)
    counts = _counts("cap_lens", cap_lens, captions)
    return _scores(images, captions, counts, opt, "i2t", "auto")


def _embeddings(**tensors: object) -> tuple[Tensor, ...]:
    """Check regions and words: a dtype, a device and a width; return them."""
    for (name, value), layout in zip(tensors.items(), ("[N, R, D]", "[M, L, D]"), strict=True):
        _checks.floating(name, value, layout)
    return _checks.alike(**tensors)  # type: ignore[arg-type]


def _counts(name: str, lengths: Sequence[int] | Tensor, words: Tensor) -> Tensor:  # [M]
    """Return numbers of words as a tensor: SCAN's encoders return a list or a tensor."""
    if isinstance(lengths, (list, tuple)) and all(map(_is_number, lengths)):
        lengths = torch.as_tensor(lengths)
    _checks.identifiers(name, lengths, words.shape[0], words, what="number of words")
    return lengths  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, Integral) or (isinstance(value, Tensor) and value.dim() == 0)


def _option(opt: Any, name: str) -> Any:
    try:
        return getattr(opt, name)
    except AttributeError:
        raise UnnamedTypeError(
            f"opt must be SCAN's options, got {_checks.describe(opt)} without {name}"
        ) from None


def _scores(
    images: Tensor,
    captions: Tensor,
    counts: Tensor,
    opt: Any,
    direction: Direction,
    backend: Backend,
) -> Tensor:
    """Return the scores of checked tensors."""
    norm, aggregate = _option(opt, "raw_feature_norm"), _option(opt, "agg_func")
    if norm in _FAILING:
        raise UnnamedValueError(
            f"opt.raw_feature_norm {norm!r} raises NameError in SCAN's code too; use one of "
            f"{', '.join(map(repr, _NORMS))}"
        )
    _checks.option("opt.raw_feature_norm", norm, _NORMS)
    _checks.option("opt.agg_func", aggregate, _AGGREGATES)
    smooth, scale = _option(opt, "lambda_softmax"), 1.0
    _checks.number("opt.lambda_softmax", smooth)
    if aggregate == "LogSumExp":
        scale = _option(opt, "lambda_lse")
        _checks.number("opt.lambda_lse", scale, above=0)
    return cross_attention(
        images,
        captions,
        word_counts=counts,
        direction=direction,
        feature_norm=_NORMS[norm],
        smooth=smooth,
        aggregate=_AGGREGATES[aggregate],
        scale=scale,
        backend=backend,
    )
