"""The positive image of every text, found from ids once per call."""

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Unmatched
from itm_kernels._public import UnnamedValueError


class Pairs(NamedTuple):
    """The positive pairs of a batch; all None if they are the diagonal."""

    # [M] index of each text's image, -1 if it has none or several
    positive: Tensor | None
    image_ids: Tensor | None  # [N] int64, on the embeddings' device
    text_ids: Tensor | None  # [M]


class Matched(NamedTuple):
    """The positive pairs of a batch in which a text may have no image."""

    pairs: Pairs
    # [M] bool, texts that are only negatives; None if every text must have an image
    absent: Tensor | None
    # [M] bool, texts with invalid ids; None if the ids could be read, and errors were raised
    mistaken: Tensor | None = None


def resolve(
    image: Tensor,  # [N, ...]
    text: Tensor,  # [M, ...]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> Pairs:
    """Check the ids and find every text's positive image.

    The values of ids are checked where that needs no device synchronisation and breaks no graph: in
    eager mode, for ids on the CPU. Elsewhere a text without exactly one image gets positive -1.

    Raises:
        ValueError: rows differ without ids, or a text matches no image or several.
    """
    return _resolve(image, text, image_ids, text_ids, None).pairs


def match(
    image: Tensor,  # [N, ...]
    text: Tensor,  # [M, ...]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str,
) -> Matched:
    """Do the same for a loss that may use texts without an image as negatives.

    The positive of such a text is -1, and a kernel returns NaN for it, which the loss replaces.

    Raises:
        ValueError: as `resolve`, but `unmatched="negative"` allows a text to match no image.
    """
    _checks.option("unmatched", unmatched, get_args(Unmatched))
    return _resolve(image, text, image_ids, text_ids, unmatched)


def _resolve(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str | None,  # None: the public function has no such option
) -> Matched:
    names = ("image_ids", "text_ids")
    on_device = _checks.id_pair(names, (image_ids, text_ids), (image, text))
    if image_ids is None or text_ids is None:
        if image.shape[0] != text.shape[0]:
            raise UnnamedValueError(
                f"image {list(image.shape)} and text {list(text.shape)} differ in "
                "rows; pass image_ids and text_ids for unequal batches"
            )
        return Matched(Pairs(None, None, None), None)
    allowed = unmatched == "negative"
    read = False
    if image_ids.is_cpu and text_ids.is_cpu:
        # Matched on the CPU, where values can be checked without synchronisation.
        positive, none = _positives(image_ids.long(), text_ids.long())
        read = _checks.can_read(positive)
        if read:
            _refuse(_mistaken(positive, none, allowed), image_ids, text_ids, unmatched)
        positive, none = (t.to(image.device, non_blocking=True) for t in (positive, none))
    else:
        positive, none = _positives(*on_device)  # type: ignore[arg-type]
    mistaken = None if read else _mistaken(positive, none, allowed)
    return Matched(Pairs(positive, *on_device), none if allowed else None, mistaken)


def _mistaken(positive: Tensor, none: Tensor, allowed: bool) -> Tensor:  # [M] bool
    """Mark the texts whose number of images is not allowed."""
    return (positive < 0) & ~none if allowed else positive < 0


def _positives(image_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image of every text, -1 unless there is exactly one, and the texts without one."""
    ordered, order = image_ids.sort(stable=True)
    text_ids = text_ids.contiguous()  # searchsorted warns of non-contiguous tensors
    first = torch.searchsorted(ordered, text_ids)
    matches = torch.searchsorted(ordered, text_ids, right=True) - first
    found = order[first.clamp_max(order.shape[0] - 1)]
    positive, none = torch.where(matches == 1, found, -1), matches == 0
    if image_ids.shape[0] != text_ids.shape[0]:
        return positive, none
    # An image may be drawn twice: with equal ids on both sides, the diagonal is positive.
    diagonal = torch.arange(text_ids.shape[0], device=text_ids.device)
    return torch.where((image_ids == text_ids).all(), diagonal, positive), none


def _refuse(mistake: Tensor, image_ids: Tensor, text_ids: Tensor, unmatched: str | None) -> None:
    mistakes = mistake.nonzero()[:, 0].tolist()
    if not mistakes:
        return
    j = mistakes[0]
    count = int((image_ids == text_ids[j]).sum())
    remedy = "every text needs exactly one image with its id"
    if count == 0 and unmatched is not None:
        remedy += ', or pass unmatched="negative": texts without an image are then only negatives'
    if not torch.isin(text_ids, image_ids).any():
        (a, b), (c, d) = ((int(x) for x in ids.aminmax()) for ids in (image_ids, text_ids))
        remedy = f"no id is on both sides ({a} to {b}, {c} to {d}): use the same ids for both"
    raise UnnamedValueError(
        f"text_ids[{j}] = {int(text_ids[j])} matches {count} of image_ids "
        f"({len(mistakes)} of {text_ids.shape[0]} have no single match); {remedy}"
    )
