"""Training-time fusion of image and text tokens into one vector per pair (ITO)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels._options import Checked, integer, number
from itm_kernels._public import UnnamedTypeError, UnnamedValueError, names_errors

_NAME = "FusionHead"


class FusionHead(Checked, nn.Module):
    """A small transformer encoder over ``[image tokens; text tokens]``; its output is the first.

    Every token gets a learnt position embedding within its own modality and an embedding of the
    modality; the blocks are pre-norm. Train with it and drop it at inference: the embeddings of the
    encoders do not depend on it. Options are attributes; `dropout` may be set between steps, the
    others are fixed at construction.

    Args:
        dim: width of the tokens and of the fused vector.
        heads: attention heads; must divide `dim`.
        layers: number of blocks.
        mlp_ratio: width of the feed-forward layer, in units of `dim`.
        dropout: probability, in [0, 1).
        max_tokens: maximum sequence length of either modality.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range or `heads` does not divide `dim`.

    Source: ITO: Images and Texts as One via Synergizing Multiple Alignment and Training-Time
    Fusion, 2026, training-time multimodal fusion.

    Example:
        >>> import torch
        >>> from itm_kernels.fusion import FusionHead
        >>> head = FusionHead(16, heads=4)
        >>> image_tokens, text_tokens = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
        >>> padding = torch.tensor([[False, False, False], [False, True, True]])
        >>> head(image_tokens, text_tokens, padding).shape
        torch.Size([2, 16])
    """

    checks = {
        "dim": integer(1),
        "heads": integer(1),
        "layers": integer(1),
        "mlp_ratio": number(above=0),
        "dropout": number(least=0, below=1),
        "max_tokens": integer(1),
    }
    fixed = ("dim", "heads", "layers", "mlp_ratio", "max_tokens")

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        layers: int = 2,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.heads = heads
        self.layers = layers
        self.mlp_ratio = mlp_ratio
        self.max_tokens = max_tokens
        self.dropout = dropout
        if dim % heads:
            raise ValueError(
                f"{_NAME}: heads {heads} does not divide dim {dim}; choose a divisor of dim"
            )
        # Positions start small, so that the content of the tokens dominates at first.
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(max_tokens, dim), std=0.02))
        self.modality = nn.Parameter(nn.init.trunc_normal_(torch.empty(2, dim), std=0.02))
        # nn.TransformerEncoder copies one block, so all layers would start with equal weights.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim,
                heads,
                dim_feedforward=max(1, round(mlp_ratio * dim)),
                dropout=dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def dropout(self) -> float:
        """Probability of dropping an element during training."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = value
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = value
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = value

    @names_errors(_NAME)
    def forward(
        self,
        image_tokens: Tensor,  # [N, P, dim]
        text_tokens: Tensor,  # [N, L, dim]
        text_padding_mask: Tensor | None = None,  # [N, L]
    ) -> Tensor:  # [N, dim]
        """Return one fused vector per pair.

        Args:
            image_tokens: ``[N, P, dim]``; the fused vector is read at the first token.
            text_tokens: ``[N, L, dim]``; text i belongs to image i.
            text_padding_mask: ``[N, L]`` bool, True for padding, whose content has no influence.

        Returns:
            ``[N, dim]``, after the final LayerNorm.

        Raises:
            TypeError: tokens are not floating point, or the mask is not bool.
            ValueError: shapes do not fit together, or a sequence exceeds `max_tokens`.
        """
        self._check(image_tokens, text_tokens, text_padding_mask)
        padding = None
        if text_padding_mask is not None:
            # Attention weights of 0 would still propagate NaN from uninitialised padding.
            text_tokens = text_tokens.masked_fill(text_padding_mask[:, :, None], 0)
            image_padding = text_padding_mask.new_zeros(image_tokens.shape[:2])
            padding = torch.cat([image_padding, text_padding_mask], 1)
        modalities = zip((image_tokens, text_tokens), self.modality, strict=True)
        embedded = [
            tokens.to(self.positions.dtype) + self.positions[: tokens.shape[1]] + modality
            for tokens, modality in modalities
        ]
        hidden = torch.cat(embedded, 1)
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        return self.norm(hidden[:, 0])

    if TYPE_CHECKING:
        __call__ = forward

    def _check(
        self, image_tokens: Tensor, text_tokens: Tensor, text_padding_mask: Tensor | None
    ) -> None:
        max_tokens, dim = self.positions.shape
        for name, tokens, layout in (
            ("image_tokens", image_tokens, "[N, P, dim]"),
            ("text_tokens", text_tokens, "[N, L, dim]"),
        ):
            _checks.floating(name, tokens, layout)
            if tokens.shape[2] != dim:
                raise UnnamedValueError(
                    f"{name} {list(tokens.shape)} must have width {dim}; "
                    f"project the tokens or build FusionHead({tokens.shape[2]})"
                )
            if tokens.shape[1] > max_tokens:
                raise UnnamedValueError(
                    f"{name} {list(tokens.shape)} is longer than the {max_tokens} "
                    f"positions; build FusionHead with max_tokens={tokens.shape[1]}"
                )
        if len(image_tokens) != len(text_tokens):
            raise UnnamedValueError(
                f"image_tokens {list(image_tokens.shape)} and text_tokens "
                f"{list(text_tokens.shape)} differ in rows; pass pairs, text i with image i"
            )
        if text_padding_mask is None:
            return
        mask = _checks.is_tensor("text_padding_mask", text_padding_mask)
        if mask.dtype != torch.bool:
            raise UnnamedTypeError(
                f"text_padding_mask must be bool, True where a text is padding, "
                f"got {_checks.describe(mask)}"
            )
        if mask.shape != text_tokens.shape[:2]:
            raise UnnamedValueError(
                f"text_padding_mask {list(mask.shape)} must have shape "
                f"{list(text_tokens.shape[:2])}, one entry per token of text_tokens"
            )
