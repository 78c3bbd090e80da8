"""FusionHead against a transformer written out by hand; its options and errors."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, softmax

from itm_kernels.fusion import FusionHead

# Four heads of 4, 3 image and 5 text tokens: sizes that no transposition leaves unchanged.
DIM, HEADS, N, P, L = 16, 4, 6, 3, 5


def head(**options: object) -> FusionHead:
    torch.manual_seed(0)
    return FusionHead(DIM, **{"heads": HEADS, "max_tokens": 8, **options})  # type: ignore[arg-type]


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(N, P, DIM, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(N, L, DIM, generator=generator, dtype=torch.float64).to(dtype)
    length = torch.tensor([5, 4, 3, 2, 1, 0])  # from full to nothing but padding
    return image, text, torch.arange(L) >= length[:, None]


def by_hand(head: FusionHead, image: Tensor, text: Tensor, real: int) -> Tensor:
    """Pre-norm transformer over one pair's real tokens, head by head."""
    weights = {name: value.detach() for name, value in head.named_parameters()}
    positions, modality = weights["positions"], weights["modality"]
    x = torch.cat(
        [
            image + positions[: len(image)] + modality[0],
            text[:real] + positions[:real] + modality[1],
        ]
    )

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    for i in range(len(head.blocks)):
        block = f"blocks.{i}"
        attention = f"{block}.self_attn"
        projected = (
            norm(x, f"{block}.norm1") @ weights[f"{attention}.in_proj_weight"].T
            + weights[f"{attention}.in_proj_bias"]
        )
        query, key, value = (part.split(DIM // HEADS, 1) for part in projected.split(DIM, 1))
        mixed = [
            softmax(query[h] @ key[h].T / math.sqrt(DIM // HEADS), 1) @ value[h]
            for h in range(HEADS)
        ]
        x = x + (
            torch.cat(mixed, 1) @ weights[f"{attention}.out_proj.weight"].T
            + weights[f"{attention}.out_proj.bias"]
        )
        hidden = norm(x, f"{block}.norm2") @ weights[f"{block}.linear1.weight"].T
        hidden = gelu(hidden + weights[f"{block}.linear1.bias"])
        x = x + hidden @ weights[f"{block}.linear2.weight"].T + weights[f"{block}.linear2.bias"]
    return norm(x[:1], "norm")[0]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_is_the_transformer_over_the_real_tokens(layers: int) -> None:
    module = head(layers=layers, mlp_ratio=1.5).double()
    image, text, padding = batch(torch.float64)
    fused = module(image, text, padding)
    assert fused.shape == (N, DIM)
    for i in range(N):
        expected = by_hand(module, image[i], text[i], int((~padding[i]).sum()))
        torch.testing.assert_close(fused[i], expected)


def test_no_mask_means_no_padding() -> None:
    image, text, padding = batch()
    module = head()
    torch.testing.assert_close(
        module(image, text), module(image, text, torch.zeros_like(padding)), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("content", [1e30, math.inf, math.nan])
def test_padding_content_has_no_influence(content: float) -> None:
    image, text, padding = batch()
    module = head()
    changed = text.masked_fill(padding[:, :, None], content).requires_grad_()
    fused = module(image, changed, padding)
    torch.testing.assert_close(fused, module(image, text, padding), rtol=0, atol=0)
    fused.square().sum().backward()
    assert changed.grad is not None
    assert (changed.grad[padding] == 0).all()
    assert (changed.grad[~padding] != 0).any(1).all()


def test_order_and_modality_matter() -> None:
    image, text, _ = batch()
    module = head()
    # Swapping tokens 1 and 2: with equal positions the read-out at token 0 would not change.
    for other in (
        module(image[:, [0, 2, 1]], text),
        module(image, text[:, [1, 0, 2, 3, 4]]),
        module(torch.cat([image, text[:, :1]], 1), text[:, 1:]),
    ):
        assert (other - module(image, text)).abs().max() > 1e-3


def test_every_used_parameter_learns() -> None:
    image, text, padding = batch()
    module = head()
    module(image, text, padding).square().sum().backward()
    used = max(P, L)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
    assert module.positions.grad is not None
    assert (module.positions.grad[used:] == 0).all()


def test_layers_start_different() -> None:
    first, second = head().blocks
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_training_evaluation_and_inference_agree_without_dropout() -> None:
    image, text, padding = batch()
    module = head()
    trained = module.train()(image, text, padding)
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(image, text, padding), trained)


def test_dropout_acts_in_training_only() -> None:
    image, text, padding = batch()
    module = head(dropout=0.5)
    assert not torch.equal(module(image, text, padding), module(image, text, padding))
    module.eval()
    assert torch.equal(module(image, text, padding), module(image, text, padding))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_dtype_keeps_it(dtype: torch.dtype) -> None:
    image, text, padding = batch(torch.float64)
    exact = head().double()(image, text, padding)
    fused = head().to(dtype)(image.to(dtype), text.to(dtype), padding)
    assert fused.dtype == dtype
    # Two blocks of about ten roundings each, on values near 1 after the LayerNorm.
    assert (fused.double() - exact).abs().max() <= 20 * torch.finfo(dtype).eps


def test_tokens_of_mixed_dtypes_are_fused_in_the_modules() -> None:
    image, text, padding = batch()
    assert head()(image.bfloat16(), text, padding).dtype == torch.float32
    assert head().bfloat16()(image, text.half(), padding).dtype == torch.bfloat16


def test_autocast() -> None:
    image, text, padding = batch()
    module = head()
    with torch.autocast("cpu", torch.bfloat16):
        fused = module(image, text, padding)
    fused.sum().backward()
    assert (fused - module(image, text, padding)).abs().max() <= 20 * torch.finfo(
        torch.bfloat16
    ).eps


@pytest.mark.parametrize("masked", [True, False])
def test_compiles_without_a_graph_break(masked: bool) -> None:
    image, text, padding = batch()
    mask = padding if masked else None
    module = head()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, text, mask), module(image, text, mask))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 3}, ValueError, r"FusionHead: heads 3 does not divide dim 16; choose a divisor"),
        ({"heads": 0}, ValueError, r"FusionHead: heads must be >= 1, got 0"),
        ({"layers": 1.5}, TypeError, r"FusionHead: layers must be an int, got float 1.5"),
        ({"dropout": 1.0}, ValueError, r"FusionHead: dropout must be .*< 1, got 1.0"),
        ({"mlp_ratio": 0}, ValueError, r"FusionHead: mlp_ratio must be .*> 0, got 0"),
    ],
)
def test_options_are_checked(options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        head(**options)


IMAGE, TEXT, PADDING = batch()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (IMAGE[:, :, :8], TEXT),
            ValueError,
            r"image_tokens \[6, 3, 8\] must have width 16; project the tokens or build",
        ),
        (
            (IMAGE, torch.cat([TEXT, TEXT], 1)),
            ValueError,
            r"text_tokens \[6, 10, 16\] is longer than the 8 positions; .*max_tokens=10",
        ),
        ((IMAGE[:, 0], TEXT), ValueError, r"image_tokens must have shape \[N, P, dim\]"),
        ((IMAGE.long(), TEXT), TypeError, r"image_tokens must be floating point"),
        (
            (IMAGE[:4], TEXT),
            ValueError,
            r"image_tokens \[4, 3, 16\] and text_tokens \[6, 5, 16\] differ in rows; pass pairs",
        ),
        ((IMAGE, TEXT, PADDING.float()), TypeError, r"text_padding_mask must be bool, True where"),
        ((IMAGE, TEXT, [True]), TypeError, r"text_padding_mask must be a torch.Tensor"),
        (
            (IMAGE, TEXT, PADDING[:, :2]),
            ValueError,
            r"text_padding_mask \[6, 2\] must have shape \[6, 5\], one entry per token",
        ),
    ],
)
def test_inputs_are_checked(arguments: tuple[Tensor, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=f"FusionHead: {message}"):
        head()(*arguments)
