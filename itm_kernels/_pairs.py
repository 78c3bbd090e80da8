"""Which image is the positive of which text (maths, "Pairs"), decided once per call."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks


class Pairs(NamedTuple):
    """The pairs of a batch; all None when they are the diagonal."""

    positive: Tensor | None  # [M] index of each text's image, -1 where it has none or several
    image_ids: Tensor | None  # [N] int64, on the embeddings' device
    text_ids: Tensor | None  # [M]


def resolve(
    function: str,
    image: Tensor,  # [N, ...]
    text: Tensor,  # [M, ...]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> Pairs:
    """Check the ids and find every text's positive image.

    Values of ids are checked where that costs no device synchronisation and breaks no graph: in
    eager mode, for ids on the CPU. Elsewhere a text without exactly one image gets positive -1.

    Raises:
        ValueError: rows differ without ids, or a text matches no image or several.
    """
    names = ("image_ids", "text_ids")
    on_device = _checks.id_pair(function, names, (image_ids, text_ids), (image, text))
    if image_ids is None or text_ids is None:
        if image.shape[0] != text.shape[0]:
            raise ValueError(
                f"{function}: image {list(image.shape)} and text {list(text.shape)} differ in "
                "rows; pass image_ids and text_ids for unequal batches"
            )
        return Pairs(None, None, None)
    if image_ids.is_cpu and text_ids.is_cpu:
        # Decided where the ids are: a check of their values then waits for no device.
        positive = _positives(image_ids.long(), text_ids.long())
        if _checks.can_read(positive):
            _refuse_unmatched(function, positive, image_ids, text_ids)
        return Pairs(positive.to(image.device, non_blocking=True), *on_device)
    return Pairs(_positives(*on_device), *on_device)  # type: ignore[arg-type]


def _positives(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    ordered, order = image_ids.sort(stable=True)
    text_ids = text_ids.contiguous()  # searchsorted warns of others
    first = torch.searchsorted(ordered, text_ids)
    matches = torch.searchsorted(ordered, text_ids, right=True) - first
    found = order[first.clamp_max(order.shape[0] - 1)]
    positive = torch.where(matches == 1, found, -1)
    if image_ids.shape[0] != text_ids.shape[0]:
        return positive
    # The same image drawn twice: a square batch with equal ids keeps its diagonal.
    diagonal = torch.arange(text_ids.shape[0], device=text_ids.device)
    return torch.where((image_ids == text_ids).all(), diagonal, positive)


def _refuse_unmatched(function: str, positive: Tensor, image_ids: Tensor, text_ids: Tensor) -> None:
    unmatched = (positive < 0).nonzero()[:, 0].tolist()
    if unmatched:
        j = unmatched[0]
        count = int((image_ids == text_ids[j]).sum())
        raise ValueError(
            f"{function}: text_ids[{j}] = {int(text_ids[j])} matches {count} of image_ids "
            f"({len(unmatched)} of {text_ids.shape[0]} have no single match); "
            "every text needs exactly one image with its id"
        )
