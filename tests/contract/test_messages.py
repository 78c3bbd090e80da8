"""The public function refuses bad input with a message that names values and remedy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from itm_kernels import functional as F
from itm_kernels import losses, mining, ops, synthesis

X, Y = torch.randn(4, 3), torch.randn(4, 3)
LONG = torch.arange(4)
PAIRWISE = [
    F.sum_of_hinges_loss,
    F.max_of_hinges_loss,
    F.imc_loss,
    F.info_cmr_loss,
    F.info_nce_loss,
    F.sigmoid_loss,
    ops.hardest_negatives,
]


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([1.0], Y),
            TypeError,
            r"image must be a torch.Tensor, got list of 1; use torch.as_tensor\(image\)$",
        ),
        (
            (X, LONG),
            TypeError,
            r"text must be floating point .*got int64 \[4\] on cpu; integers are .*: encode them",
        ),
        ((X[0], Y), ValueError, r"image must have shape \[rows, D\], got \[3\]; encode or pool it"),
        ((X[:0], Y), ValueError, r"image \[0, 3\] is empty"),
        ((X[:, :0], Y), ValueError, r"image \[4, 0\] is empty"),
        ((X, Y[:, :2]), ValueError, r"image \[4, 3\] and text \[4, 2\] differ in the last dim"),
        ((X, Y.double()), TypeError, "differ in dtype, float32 and float64; convert one"),
        ((X, Y.to("meta")), ValueError, "different devices, cpu and meta; move one"),
        ((X, Y[:3]), ValueError, "differ in rows; pass image_ids and text_ids"),
    ],
    ids=["type", "dtype", "rank", "no-rows", "no-columns", "width", "dtypes", "devices", "rows"],
)
def test_embeddings(
    function: Callable[..., Any], arguments: tuple[Any, ...], error: type, message: str
) -> None:
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode(), pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
            function(*arguments)


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ((LONG, None), ValueError, "image_ids is given without text_ids; pass both or neither"),
        ((None, LONG), ValueError, "text_ids is given without image_ids; pass both or neither"),
        (([0, 1, 2, 3], LONG), TypeError, "image_ids must be a torch.Tensor"),
        ((LONG.float(), LONG), TypeError, r"image_ids must be integers, got float32 .*\.long\(\)"),
        (
            (LONG, LONG[:3]),
            ValueError,
            r"text_ids must have shape \[4\], one id per row, got \[3\]",
        ),
        (
            (LONG, LONG.to("meta")),
            ValueError,
            "text_ids is on meta, the embeddings on cpu; move it",
        ),
        (
            (LONG, LONG + 2),
            ValueError,
            r"text_ids\[2\] = 4 matches 0 of image_ids \(2 of 4 have no single match\)",
        ),
        (
            (LONG, LONG + 100),
            ValueError,
            r"text_ids\[0\] = 100 matches 0 of image_ids \(4 of 4 have no single match\); "
            r"no id is on both sides \(0 to 3, 100 to 103\): use the same ids for both$",
        ),
        ((LONG // 2, LONG.flip(0) // 2), ValueError, r"text_ids\[0\] = 1 matches 2 of image_ids"),
    ],
    ids=["one", "other", "list", "dtype", "length", "device", "none", "none-at-all", "several"],
)
def test_ids(function: Callable[..., Any], ids: tuple[Any, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(X, Y, image_ids=ids[0], text_ids=ids[1])


OPTIONS: list[tuple[Callable[..., Any], dict[str, Any], type, str]] = [
    (losses.SumOfHingesLoss, {"margin": "a"}, TypeError, "margin must be a number, got str 'a'"),
    (
        losses.SumOfHingesLoss,
        {"margin": float("nan")},
        ValueError,
        "margin must be finite, got nan",
    ),
    (
        losses.MaxOfHingesLoss,
        {"mining": "all"},
        ValueError,
        "mining must be one of 'hardest', 'sem",
    ),
    (losses.MaxOfHingesLoss, {"reduction": "avg"}, ValueError, "reduction must be one of 'none', "),
    (losses.MaxOfHingesLoss, {"margin": True}, TypeError, "margin must be a number, got bool True"),
    (losses.IntraModalConstraint, {"metric": "l3"}, ValueError, "metric must be one of 'cosine', "),
    (losses.IntraModalConstraint, {"mode": "code"}, ValueError, "mode must be one of 'official', "),
    (losses.IntraModalConstraint, {"thresholds": "row1"}, ValueError, "thresholds must be one of "),
    (
        losses.IMCLoss,
        {"mode": "paper", "lower": 0.5, "upper": 0.5},
        ValueError,
        "upper must be finite and > 0.5, got 0.5",
    ),
    (
        losses.IMCLoss,
        {"metric": "l1", "lower": -0.1},
        ValueError,
        "lower must be finite and >= 0, got -0.1",
    ),
    (
        losses.IntraModalConstraint,
        {"metric": "l2", "upper": -0.1},
        ValueError,
        "upper must be finite and >= 0, got -0.1",
    ),
    (
        losses.InfoCMRLoss,
        {"temperature": 0},
        ValueError,
        "temperature must be finite and > 0, got 0",
    ),
    (losses.InfoCMRLoss, {"sigma": -1.0}, ValueError, "sigma must be finite and > 0, got -1.0"),
    (losses.InfoCMRLoss, {"num_clusters": -1}, ValueError, "num_clusters must be >= 0, got -1"),
    (
        losses.InfoCMRLoss,
        {"num_clusters": 2.0},
        TypeError,
        "num_clusters must be an int, got float",
    ),
    (losses.InfoCMRLoss, {"num_noise": -1}, ValueError, "num_noise must be >= 0, got -1"),
    (
        losses.InfoCMRLoss,
        {"weights": "mean"},
        ValueError,
        "weights must be one of 'kam', 'attention'",
    ),
    (losses.InfoCMRLoss, {"clustering": "all"}, ValueError, "clustering must be one of 'shared', "),
    (losses.InfoNCELoss, {"logit_scale": 0.0}, ValueError, "logit_scale must be finite and > 0"),
    (
        losses.SigmoidLoss,
        {"logit_bias": None},
        TypeError,
        "logit_bias must be a number, got NoneType",
    ),
    (
        losses.ITMLoss,
        {"reduction": "all"},
        ValueError,
        "reduction must be one of 'none', 'sum', 'mean",
    ),
    (
        losses.ITMLoss,
        {"label_smoothing": -0.1},
        ValueError,
        "label_smoothing must be finite and >= 0",
    ),
    (losses.ITOLoss, {"fusion_weight": -1}, ValueError, "fusion_weight must be finite and >= 0"),
    (
        mining.HardNegativeSampler,
        {"strategy": "easy"},
        ValueError,
        "strategy must be one of 'multi",
    ),
    (
        mining.HardNegativeSampler,
        {"temperature": 0},
        ValueError,
        "temperature must be finite and > 0",
    ),
    (synthesis.HardNegativeSynthesis, {"num_clusters": 0}, ValueError, "num_clusters must be >= 1"),
    (synthesis.HardNegativeSynthesis, {"ridge": -1.0}, ValueError, "ridge must be finite and >= 0"),
    (synthesis.HardNegativeSynthesis, {"iterations": -1}, ValueError, "iterations must be >= 0"),
]


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    OPTIONS,
    ids=[f"{build.__name__}-{'-'.join(options)}" for build, options, *_ in OPTIONS],
)
def test_options_of_modules(
    build: Callable[..., Any], options: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=f"^{build.__name__}: {message}"):
        build(**options)
