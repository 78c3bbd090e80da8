"""Messages give the remedy for outputs of data loaders, tokenizers and other libraries."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from itm_kernels import functional as F
from itm_kernels import losses, mining, ops, synthesis
from tests.contract.test_messages_short import CALLS, TENSORS, required

X, Y, IDS = torch.randn(4, 3), torch.randn(4, 3), torch.arange(4)

REMEDIES: dict[str, tuple[Any, str]] = {
    "list": ([[0.0] * 1024] * 512, r"got list of 512; use torch.as_tensor\(image\)"),
    "list-of-tensors": ([X[0]] * 4, r"got list of 4; pass one of its tensors, or torch.stack\(im"),
    "outputs": ({"pooled": X}, "got dict of 1; pass one tensor of it"),
    "ndarray": (
        np.zeros((31, 32), dtype=np.float32),
        r"got ndarray float32 \[31, 32\]; use torch.as_tensor\(image\)",
    ),
    "captions": (["a dog"] * 5, "got list of 5; encode words, and number ids, first"),
    "tokens": (TENSORS["tokens"], "integers are token ids, labels or pixels: encode them first"),
    "complex": (
        TENSORS["complex"],
        r"concatenate its parts: torch.cat\(\[image.real, image.imag\], -1\)",
    ),
    "float8": (TENSORS["float8"], r"convert it with image.float\(\)"),
    "one-row": (
        X[0],
        r"got \[3\]; encode or pool it to one row per sample first, image\[None\] if it is one",
    ),
    "hidden": (torch.zeros(4, 7, 3), r"\[4, 7, 3\]; encode or pool it to one row per sample first"),
    "pixels": (torch.zeros(4, 3, 8, 8), r"\[4, 3, 8, 8\]; encode or pool it to one row per sam"),
    "sparse": (TENSORS["sparse"], r"dense tensor, got float32 \[4, 3\] sparse_coo .*to_dense\(\)"),
    "csr": (TENSORS["csr"], r"dense tensor, got float32 \[4, 3\] sparse_csr .*to_dense\(\)"),
    "mkldnn": (TENSORS["mkldnn"], r"dense tensor, got float32 \[4, 3\] _mkldnn .*to_dense\(\)"),
    "quantized": (TENSORS["quantized"], r"dense tensor, got qint8 \[4, 3\] .*image.dequantize\(\)"),
    "nested": (TENSORS["nested"], "dense tensor, got nested float32 on cpu; pool every sample"),
    "jagged": (TENSORS["jagged"], "dense tensor, got nested float32 on cpu; pool every sample"),
}


@pytest.mark.parametrize("given", REMEDIES)
@pytest.mark.parametrize(
    "function", [F.max_of_hinges_loss, ops.hardest_negatives], ids=lambda f: f.__name__
)
def test_embeddings(function: Callable[..., Any], given: str) -> None:
    value, message = REMEDIES[given]
    with pytest.raises(
        (TypeError, ValueError), match=f"^{function.__name__}: image must .*{message}"
    ):
        function(value, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.SumOfHingesLoss().from_scores(torch.ones(4, 4, dtype=torch.int64)),
            r"scores must be floating point .*; convert it with scores.float\(\)$",
        ),
        (
            lambda: losses.SumOfHingesLoss().from_scores(torch.ones(4, 4, 7)),
            r"scores must have shape \[N, M\], got \[4, 4, 7\]; reduce it to one score per image",
        ),
        (
            lambda: F.multi_view_alignment_loss(X, Y[None]),
            r"images must have shape \[views, N, D\], got \[4, 3\]; .*, images\[None\] if",
        ),
        (
            lambda: F.max_of_hinges_loss(X, Y, margin=torch.tensor(0.2)),  # type: ignore[arg-type]
            r"margin must be a number, got float32 \[\] on cpu; use margin.item\(\)",
        ),
        (
            lambda: F.max_of_hinges_loss(X, Y, reduction="avg" * 100),  # type: ignore[arg-type]
            "reduction must be one of 'none', 'sum', 'mean', got str of 300 characters",
        ),
        (lambda: ops.kmeans(X, 2**70), r"num_clusters must be < 2 \*\* 63, got 118059162071741130"),
        (lambda: ops.kmeans(X, 10**5000), r"num_clusters must be < 2 \*\* 63, got int$"),
        (
            lambda: F.max_of_hinges_loss(X, Y, margin=10**400),
            "margin must be finite, got 1000000000000000000000000000000000000...",
        ),
        (
            lambda: F.max_of_hinges_loss(X, Y, image_ids=["COCO_1"] * 4, text_ids=IDS),  # type: ignore[arg-type]
            "image_ids must be a torch.Tensor, got list of 4; encode words, and number ids, f",
        ),
        (
            lambda: F.max_of_hinges_loss(X, Y, image_ids=list(range(4)), text_ids=IDS),  # type: ignore[arg-type]
            r"image_ids must be a torch.Tensor, got list of 4; use torch.as_tensor\(image_ids\)",
        ),
        (
            lambda: ops.similarity(torch.ones((2,) * 9), torch.ones((3,) * 9)),
            r"x \[2, 2, 2, 2, 2, 2, ...\] of 9 dimensions and y \[3, 3, 3, 3, 3, 3, ...\] of 9",
        ),
    ],
)
def test_other_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# -- labels by position ----------------------------------------------------------------------------

NAMES = {
    "log_sum_exp": "x_ids= and y_ids=",
    "rbf_synthesis": "anchor_ids= and member_ids=",
    "rbf_synthesis_logits": "anchor_ids= and member_ids=",
    "HardNegativeSynthesis()": "anchor_ids= and member_ids=",
    "HardNegativeSynthesis.logits": "anchor_ids= and member_ids=",
    "intra_modal_constraint": "ids=",
    "IntraModalConstraint()": "ids=",
    "intra_modal_sum": "ids=",
}
WITHOUT_IDS = {
    "fusion_contrastive_loss": "logit_scale=, ",
    "multi_view_alignment_loss": "logit_scale=, ",
    "FusionContrastiveLoss()": "logit_scale=",
    "MultiViewAlignmentLoss()": "logit_scale=",
    "itm_loss": "exists=, reduction=, label_smoothing=",
    "cross_attention": "direction=, feature_norm=, smooth=",
    "late_interaction": "direction=, reduce=, normalize=",
    "kmeans": "iterations=, init=, generator=",
    "ranks": "backend=",
    "mean_average_precision": "metric=, at_r=",
    "similarity": "backend=",
}
OTHERS = (
    "FusionHead()",
    "ContrastiveLoss()",
    "sgraf.ContrastiveLoss",
    "sgraf.ContrastiveLoss()",
    "xattn_score_t2i",
    "xattn_score_i2t",
    "IntraLoss()",
    "ClipLoss()",
    "SigLipLoss()",
)
TAKES_OPTIONS = [
    name for name in CALLS if (name.islower() or "()" in name or "." in name) and name not in OTHERS
]


@pytest.mark.parametrize("call", TAKES_OPTIONS)
def test_labels_by_position_name_the_keyword(call: str) -> None:
    function = CALLS[call]
    kinds = inspect.Parameter
    given = [
        p.default if p.default is not p.empty else required(function)[p.name]
        for p in inspect.signature(function).parameters.values()
        if p.kind is kinds.POSITIONAL_OR_KEYWORD
    ]
    if call == "ITOLoss()":
        remedy = "it takes neither ids nor labels$"
    elif call in WITHOUT_IDS:
        remedy = rf"pass options by name \({WITHOUT_IDS[call]}"
    else:
        remedy = f"for ids or labels use {NAMES.get(call, 'image_ids= and text_ids=')}$"
    name = call.removesuffix("()")
    message = (
        rf"^{name}: takes {len(given)} positional arguments \(.*\), got {len(given) + 1}; {remedy}"
    )
    with pytest.raises(TypeError, match=message):
        function(*given, IDS)


def test_a_module_called_with_labels() -> None:
    message = (
        r"^MaxOfHingesLoss: takes 2 positional arguments \(image, text\), got 3; "
        "for ids or labels use image_ids= and text_ids=$"
    )
    with pytest.raises(TypeError, match=message):
        losses.MaxOfHingesLoss()(X, Y, IDS)


def test_signatures_stay_readable() -> None:
    assert str(inspect.signature(F.max_of_hinges_loss)).startswith("(image: ")
    assert F.max_of_hinges_loss.__doc__ is not None
    assert list(inspect.signature(losses.ITMLoss.forward).parameters)[:3] == [
        "self",
        "image",
        "text",
    ]


# -- numbers of NumPy ------------------------------------------------------------------------------


def test_numpy_integers_and_floats_are_numbers() -> None:
    module = losses.InfoCMRLoss(np.float32(0.1), num_clusters=np.int64(2), num_noise=np.uint8(0))
    assert type(module.temperature) is float
    assert type(module.num_clusters) is int
    assert mining.HardNegativeSampler(temperature=np.float16(0.5)).temperature == 0.5
    assert synthesis.HardNegativeSynthesis(np.int32(2)).options.num_clusters == 2
    for wrong, message in (
        (np.bool_(True), "got bool"),
        (np.ones(1), r"got ndarray float64 \[1\]"),
    ):
        with pytest.raises(TypeError, match=f"num_noise must be an int, {message}"):
            losses.InfoCMRLoss(num_noise=wrong)


@pytest.mark.usefixtures("two_steps")
def test_numpy_options_of_a_module_compile() -> None:
    module = losses.InfoCMRLoss(np.float32(0.1), num_clusters=np.int64(2), num_noise=np.int64(3))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = module(X, Y)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(X, Y), expected)
