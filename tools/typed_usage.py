"""Types of the public API as a type checker sees them: `make lint` checks this file with mypy.

The file is never run. An unused "type: ignore" is an error, so the checker must report a mistake at
every one of them.
"""

from torch import Tensor
from typing_extensions import assert_type

from itm_kernels import diagnostics, functional, fusion, losses, mining, ops, synthesis
from itm_kernels.backends import Backend


def calls_give_tensors(image: Tensor, text: Tensor, ids: Tensor) -> None:
    """Modules and functions return tensors or their named results."""
    given = {"image_ids": ids, "text_ids": ids}
    assert_type(losses.SumOfHingesLoss()(image, text, **given), Tensor)
    assert_type(losses.MaxOfHingesLoss(mining="semihard")(image, text), Tensor)
    assert_type(losses.MaxOfHingesLoss().from_scores(image), Tensor)
    assert_type(losses.InfoCMRLoss().from_scores(image, image=image, text=text), Tensor)
    assert_type(losses.IMCLoss().from_scores(image, image, text, **given), Tensor)
    assert_type(losses.IntraModalConstraint("l1", mode="paper")(image, ids=ids), Tensor)
    assert_type(losses.IMCLoss(unmatched="negative")(image, text), Tensor)
    assert_type(losses.InfoCMRLoss(learnable=True)(image, text), Tensor)
    assert_type(losses.InfoNCELoss(temperature=0.07)(image, text, logit_scale=20.0), Tensor)
    assert_type(losses.SigmoidLoss()(image, text), Tensor)
    assert_type(losses.ITMLoss()(image, text, lambda i, t: image[i, 0]), Tensor)
    assert_type(losses.MultiViewAlignmentLoss()(image, text), Tensor)
    assert_type(losses.FusionContrastiveLoss()(image), Tensor)
    assert_type(losses.ITOLoss()(image, text, image), Tensor)
    assert_type(fusion.FusionHead(8)(image, text), Tensor)
    assert_type(synthesis.HardNegativeSynthesis()(image, text), ops.Synthesis)
    assert_type(mining.HardNegativeSampler("hardest")(image, text), mining.HardNegatives)
    assert_type(functional.info_nce_loss(image, text, max_scale=100.0), Tensor)
    assert_type(ops.similarity(image, text, "l2"), Tensor)
    assert_type(diagnostics(losses.IMCLoss(), image, text), dict[str, float])


def options_have_types() -> None:
    """Attributes have the types of the options that set them."""
    assert_type(losses.MaxOfHingesLoss().margin, float)
    assert_type(losses.IMCLoss().backend, Backend)
    assert_type(losses.IntraModalConstraint().upper, float)
    assert_type(losses.InfoCMRLoss().num_clusters, int)
    assert_type(losses.InfoNCELoss().logit_scale(), float | Tensor)
    assert_type(losses.InfoNCELoss().max_scale, float | None)
    assert_type(mining.HardNegativeSampler().backend, Backend)
    assert_type(synthesis.HardNegativeSynthesis().sigma, float)


def words_are_literal(image: Tensor, text: Tensor, backend: Backend, word: str) -> None:
    """An invalid option value is a type error."""
    losses.MaxOfHingesLoss(mining="semi-hard")  # type: ignore[arg-type]
    losses.SumOfHingesLoss(reduction="avg")  # type: ignore[arg-type]
    losses.InfoNCELoss(backend=backend)
    losses.InfoNCELoss(backend=word)  # type: ignore[arg-type]
    losses.SigmoidLoss(unmatched="skip")  # type: ignore[arg-type]
    losses.IMCLoss(metric="l3", mode="code", thresholds="row1")  # type: ignore[arg-type]
    losses.InfoCMRLoss(weights="mean", clustering="all")  # type: ignore[arg-type]
    mining.HardNegativeSampler("easy")  # type: ignore[arg-type]
    functional.max_of_hinges_loss(image, text, mining="all")  # type: ignore[arg-type]
    ops.similarity(image, text, "cos")  # type: ignore[arg-type]
    ops.kmeans(image, 8, backend="cuda")  # type: ignore[arg-type]
    losses.MaxOfHingesLoss()(image)  # type: ignore[call-arg]
    criterion = losses.MaxOfHingesLoss()
    criterion.mining = "semi-hard"  # type: ignore[assignment]
    criterion.margin = 0.3
