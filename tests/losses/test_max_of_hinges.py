"""Max of hinges: semi-hard negatives, and options that are set later or missing."""

import pytest
import torch

from itm_kernels import losses
from loss_cases import batch


def test_semihard_leaves_out_a_negative_as_good_as_the_positive() -> None:
    """Strictly below: the tied text is passed over for the next one."""
    scores = torch.tensor([[1.0, 1.0, 0.75], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    loss = losses.MaxOfHingesLoss(0.5, mining="semihard", reduction="none")
    assert loss.from_scores(scores).tolist() == [0.25, 0.0, 0.0]
    assert losses.MaxOfHingesLoss(0.5, reduction="none").from_scores(scores)[0] == 0.5


def test_a_wrong_mining_word_is_an_error() -> None:
    criterion = losses.MaxOfHingesLoss()
    with pytest.raises(ValueError, match="mining must be one of 'hardest', 'semihard'"):
        criterion.mining = "semi-hard"
    assert criterion.mining == "hardest"


def test_a_margin_set_between_steps_reaches_a_compiled_loss() -> None:
    image, text = batch(6, 8, torch.float32)
    criterion = losses.MaxOfHingesLoss(backend="reference")
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for margin in (0.2, 0.7):
        criterion.margin = margin
        expected = losses.MaxOfHingesLoss(margin, backend="reference")(image, text)
        torch.testing.assert_close(compiled(image, text), expected)


def test_older_modules_without_the_option_still_run() -> None:
    """A pickle of an earlier version holds no `unmatched`."""
    criterion = losses.MaxOfHingesLoss()
    criterion.__dict__["_names"] = ("margin", "mining", "reduction", "backend")
    del criterion.__dict__["unmatched"]
    image, text = batch()
    assert torch.equal(criterion(image, text), losses.MaxOfHingesLoss()(image, text))
    assert criterion.from_scores(image @ text.T).isfinite()
