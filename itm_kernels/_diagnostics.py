"""Statistics of a batch for logging: scores, violations, bands and scales."""

import torch
from torch import Tensor, nn

from itm_kernels import _checks, _positives
from itm_kernels._public import UnnamedTypeError, public
from itm_kernels.losses import IMCLoss, IntraModalConstraint, SigmoidLoss
from itm_kernels.losses._logit_scale import ScaledLoss
from itm_kernels.losses._module import OptionsModule
from itm_kernels.ops._hardest_negatives import fused_hardest_negatives
from itm_kernels.ops._unit_rows import fused_unit_rows
from itm_kernels.reference._intra_modal import in_band

_FUNCTION = "diagnostics"


@public
@torch.no_grad()
def diagnostics(
    loss: nn.Module,
    image: Tensor,
    text: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> dict[str, float]:
    """Return statistics of a batch under a loss, without gradient.

    Call it only occasionally: it synchronises with the device, and constraints store `[N, N]`.

    Args:
        loss: a Module of `itm_kernels.losses`.
        image: `[N, D]` embeddings, as passed to the loss.
        text: `[M, D]` embeddings; M = N without ids.
        image_ids: `[N]` integers.
        text_ids: `[M]` integers.

    Returns:
        The statistics that apply to the loss:

        - `positive`, `hardest_text`, `hardest_image`: mean scores of the pairs and of their hardest
          negatives; cosines if the loss normalises internally, else dot products;
        - `violated_by_text`, `violated_by_image`: fraction of pairs whose hardest negative scores
          above the positive minus the margin (0 for losses without a margin);
        - `image_in_band`, `text_in_band`: fraction of the pairs of one modality inside the band of
          `IMCLoss` or `IntraModalConstraint`;
        - `logit_scale`, `temperature`, `logit_bias`: current values, learnt or fixed.

        A fraction or mean over no pairs is NaN.

    Raises:
        TypeError: loss is not a Module of `itm_kernels.losses`, or an error of the loss itself.
        ValueError: shapes, devices or ids do not fit.

    >>> import torch
    >>> from itm_kernels import losses
    >>> diagnostics(losses.MaxOfHingesLoss(), torch.eye(4), torch.eye(4))["violated_by_text"]
    0.0
    """
    if not isinstance(loss, OptionsModule):
        raise UnnamedTypeError(
            f"loss must be a Module of itm_kernels.losses, got {type(loss).__name__}"
        )
    image, text = _checks.embeddings(image=image, text=text)
    unmatched = getattr(loss, "unmatched", "error")
    pairs, absent, _ = _positives.match(image, text, image_ids, text_ids, unmatched)
    found: dict[str, Tensor | float] = {}
    if not isinstance(loss, IntraModalConstraint):
        sides = image, text
        if isinstance(loss, ScaledLoss):
            sides = (
                fused_unit_rows(image, "auto"),
                fused_unit_rows(text, "auto"),
            )
        found.update(_scores(*sides, pairs, absent, getattr(loss, "margin", 0.0)))
    if isinstance(loss, IMCLoss | IntraModalConstraint):
        for name, rows, ids in (
            ("image_in_band", image, pairs.image_ids),
            ("text_in_band", text, pairs.text_ids),
        ):
            found[name] = _share_in_band(loss, rows, ids)
    if isinstance(loss, ScaledLoss):
        scale = loss.logit_scale()
        found |= {"logit_scale": scale, "temperature": 1 / scale}
    if isinstance(loss, SigmoidLoss):
        found["logit_bias"] = loss.logit_bias
    return _numbers(found, image)


def _numbers(found: dict[str, Tensor | float], like: Tensor) -> dict[str, float]:
    """Copy all statistics to the host at once."""
    values = [torch.as_tensor(value, device=like.device).double() for value in found.values()]
    return dict(zip(found, torch.stack(values).tolist(), strict=True))


def _scores(
    image: Tensor, text: Tensor, pairs: _positives.Pairs, absent: Tensor | None, margin: float
) -> dict[str, Tensor | float]:
    s, text_score, _, image_score, _ = fused_hardest_negatives(image, text, pairs, "auto")
    if pairs.positive is not None:
        text_score = text_score[pairs.positive.clamp_min(0)]
    exists = torch.ones_like(s, dtype=torch.bool) if absent is None else ~absent

    def mean(values: Tensor, of: Tensor) -> Tensor:
        return values.double().masked_fill(~of, 0).sum() / of.sum()

    numbers: dict[str, Tensor | float] = {"positive": mean(s, exists)}
    for name, score in (("text", text_score), ("image", image_score)):
        numbers[f"hardest_{name}"] = mean(score, exists & (score != -torch.inf))
        violation = margin + score - s
        violated = (violation > 0).double().masked_fill(violation.isnan(), torch.nan)
        numbers[f"violated_by_{name}"] = mean(violated, exists)
    return numbers


def _share_in_band(loss: OptionsModule, rows: Tensor, ids: Tensor | None) -> Tensor:
    options = loss.options
    per_row = options["thresholds"] == "per_row"
    band = options["metric"], options["mode"], options["lower"], options["upper"], per_row
    N = rows.shape[0]
    own = torch.arange(N, device=rows.device) if ids is None else ids
    return in_band(rows, ids, *band).sum() / (own[:, None] != own).sum()
