"""Options are attributes that work when they are set, and cannot be set wrongly."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from itm_kernels import backends, functional, fusion, losses, mining, synthesis
from loss_cases import batch

BUILD: dict[str, Callable[[], Any]] = {
    **{name: getattr(losses, name) for name in losses.__all__},
    "HardNegativeSampler": mining.HardNegativeSampler,
    "HardNegativeSynthesis": synthesis.HardNegativeSynthesis,
    "FusionHead": lambda: fusion.FusionHead(8, heads=2),
}
WORDS = {
    "backend", "reduction", "unmatched", "mining", "metric", "mode", "thresholds", "weights",
    "clustering", "strategy", "gradients", "exchange",
}  # fmt: skip
NOT_BELOW_0 = {
    "temperature", "logit_scale", "max_scale", "sigma", "num_clusters", "num_noise", "iterations",
    "ridge", "fusion_weight", "label_smoothing", "dropout",
}  # fmt: skip
NUMBERS = NOT_BELOW_0 | {"margin", "lower", "upper", "weight", "logit_bias"}
FIXED = {"learnable", "dim", "heads", "layers", "mlp_ratio", "max_tokens"}
FLAGS = {"detach", "draws_in_eval"}


def options(name: str) -> list[str]:
    kind = type(BUILD[name]())
    return list(inspect.signature(kind).parameters)


EVERY = [(name, option) for name in BUILD for option in options(name)]


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_no_option_can_be_set_wrongly(name: str, option: str) -> None:
    criterion = BUILD[name]()
    if option in FIXED:
        message = rf"{name}: {option} is fixed at construction; build {name}\({option}="
        with pytest.raises(AttributeError, match=message):
            setattr(criterion, option, getattr(criterion, option))
        return
    if option in WORDS:
        message = f"^{name}: {option} must be one of '.*got 'semi-hard'"
        with pytest.raises(ValueError, match=message):
            setattr(criterion, option, "semi-hard")
    elif option in NUMBERS:
        message = f"^{name}: {option} must be "
        with pytest.raises(TypeError, match=message):
            setattr(criterion, option, "large")
        with pytest.raises(ValueError, match=message):
            setattr(criterion, option, -1 if option in NOT_BELOW_0 else float("nan"))
    elif option in FLAGS:
        with pytest.raises(TypeError, match=f"^{name}: {option} must be True or False, got str"):
            setattr(criterion, option, "no")
    elif option == "group":
        with pytest.raises(TypeError, match=f"^{name}: group must be a process group, got str"):
            criterion.group = "world"
    else:
        assert option == "sampler", "add the option's values here"
        with pytest.raises(TypeError, match="^ITMLoss: sampler must be a function .*got str"):
            criterion.sampler = "hardest"


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_every_option_is_an_attribute(name: str, option: str) -> None:
    assert hasattr(BUILD[name](), option)


@pytest.mark.parametrize("value", [0.3, 1, np.float32(0.3), np.float64(0.3), np.int64(1)])
def test_a_margin_schedule_works(value: Any) -> None:
    image, text = batch()
    for kind in (losses.SumOfHingesLoss, losses.MaxOfHingesLoss, losses.IMCLoss):
        criterion = kind()
        criterion.margin = value
        assert torch.equal(criterion(image, text), kind(value)(image, text))
        assert type(criterion.margin) in (int, float)
        for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
            assert torch.equal(twin(image, text), kind(value)(image, text))
            with pytest.raises(TypeError, match="margin must be a number"):
                twin.margin = "wide"


def test_a_mode_set_later_brings_its_own_reduction() -> None:
    image, _ = batch()
    criterion = losses.IntraModalConstraint(upper=2.0)
    criterion.mode = "paper"
    expected = losses.IntraModalConstraint(upper=2.0, mode="paper")
    assert torch.equal(criterion(image), expected(image))
    assert criterion(image) > 0


def test_synthesis_and_sampler_use_options_set_later() -> None:
    image, text = (t.detach() for t in batch(6, 8))
    module = synthesis.HardNegativeSynthesis(2)
    module.num_clusters, module.sigma, module.weights = 3, 0.5, "attention"
    torch.manual_seed(0)
    found = module(image, text).vectors
    torch.manual_seed(0)
    expected = synthesis.HardNegativeSynthesis(3, sigma=0.5, weights="attention")(image, text)
    assert torch.equal(found, expected.vectors)
    sampler = mining.HardNegativeSampler()
    sampler.strategy = "hardest"
    expected_index = mining.HardNegativeSampler("hardest")(image, text).text_index
    assert torch.equal(sampler(image, text).text_index, expected_index)


def test_dropout_of_a_fusion_head_can_be_scheduled() -> None:
    head = fusion.FusionHead(8, heads=2)
    head.dropout = 0.5
    assert all(m.p == 0.5 for m in head.modules() if isinstance(m, nn.Dropout))
    assert all(m.dropout == 0.5 for m in head.modules() if isinstance(m, nn.MultiheadAttention))
    image, text = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    assert not torch.equal(head(image, text), head(image, text))


PUBLIC = [type(build()) for build in BUILD.values()]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_help_explains_every_option(kind: type) -> None:
    text = inspect.getdoc(kind) or ""
    assert "Args:" in text
    for option in inspect.signature(kind).parameters:
        assert f"\n    {option}: " in text, option


@pytest.mark.parametrize("name", functional.__all__)
def test_help_explains_every_argument_of_a_function(name: str) -> None:
    function = getattr(functional, name)
    text = inspect.getdoc(function) or ""
    for argument in inspect.signature(function).parameters:
        assert f"\n    {argument}: " in text, argument


@pytest.mark.parametrize("name", losses.__all__)
def test_help_tells_whether_rows_are_normalised(name: str) -> None:
    assert "normalised" in (inspect.getdoc(getattr(losses, name)) or "") or name == "ITMLoss"


def test_the_words_of_a_backend_are_those_that_exist() -> None:
    assert set(backends.CHOICES) == {"auto", "reference", *backends.NAMESPACES}
