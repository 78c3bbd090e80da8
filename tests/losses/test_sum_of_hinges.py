"""Sum of hinges: the option `mining`, which earlier versions had."""

import pickle

import pytest
import torch

from itm_kernels import losses
from loss_cases import batch


def test_sum_of_hinges_has_no_mining_option() -> None:
    with pytest.raises(TypeError, match="SumOfHingesLoss.* unexpected keyword argument 'mining'$"):
        losses.SumOfHingesLoss(mining="all")  # type: ignore[call-arg]


def test_older_modules_with_the_removed_option_still_run() -> None:
    """A pickle of `SumOfHingesLoss` from an earlier version holds `mining="all"`."""
    criterion = losses.SumOfHingesLoss()
    criterion.__dict__["mining"] = "all"
    image, text = batch()
    twin = pickle.loads(pickle.dumps(criterion))
    assert torch.equal(twin(image, text), losses.SumOfHingesLoss()(image, text))
