"""The batches of an epoch, in the same random order on every process."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dataset import CAPTIONS_PER_IMAGE
from process_group import Processes
from vocabulary import PADDING


class Batch(NamedTuple):
    """This process's N of a batch's distinct images, each with two of its captions."""

    images: Tensor  # [N, ...]
    words: Tensor  # [N, L]; L is the whole batch's longest caption
    other_words: Tensor  # [N, L'], the second caption; only `ito` reads it
    ids: Tensor  # [N], image numbers
    rows: int  # images of all processes


def draw_batches(
    images: Tensor, words: Tensor, rows: int, generator: torch.Generator, processes: Processes
) -> Iterator[Batch]:
    """Yield the batches of an epoch: every image five times, each time with another caption.

    The images of a batch are distinct. Each pass drops an incomplete last batch.

    Args:
        images: ``[I, ...]``, all images.
        words: ``[5 I, L]``, the padded word numbers of their captions.
        rows: images of a batch, over all processes.
        generator: draws the order; in the same state on every process.
        processes: those that share the batches.

    Yields:
        This process's share of each batch.
    """

    def read(captions: Tensor) -> Tensor:
        found = words[captions]
        return found[:, : int((found != PADDING).sum(1).max())][mine]

    count = len(images)
    mine = processes.share(rows)
    order = torch.rand(count, CAPTIONS_PER_IMAGE, generator=generator).argsort(dim=1)
    captions = order + CAPTIONS_PER_IMAGE * torch.arange(count)[:, None]
    for number in range(CAPTIONS_PER_IMAGE):
        shuffled = torch.randperm(count, generator=generator)
        for ids in shuffled.split(rows):
            if len(ids) == rows:
                yield Batch(
                    images[ids[mine]],
                    read(captions[ids, number]),
                    read(captions[ids, (number + 1) % CAPTIONS_PER_IMAGE]),
                    ids[mine],
                    rows,
                )
