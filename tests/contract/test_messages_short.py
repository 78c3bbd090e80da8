"""Any wrong argument of a public function: one line, at most 250 characters, the right type."""

import inspect
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itm_kernels import diagnostics, losses, mining, ops, retrieval, synthesis
from itm_kernels import functional as F
from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.scan import xattn_score_i2t, xattn_score_t2i
from itm_kernels.compat.sgraf import ContrastiveLoss as LossOfScores
from itm_kernels.compat.vsepp import ContrastiveLoss
from itm_kernels.fusion import FusionHead

# Evaluation warns of suspicious but valid arguments.
pytestmark = pytest.mark.filterwarnings("ignore:evaluate")
MOST = 250
X, Y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
IDS = torch.arange(4)


class Verbose:
    """A foreign object with a long repr."""

    def __repr__(self) -> str:
        return "Verbose(\n" + "x" * 10_000 + ")"


def quietly(make: Callable[[], Tensor]) -> Tensor:
    """Make a tensor of a layout that torch calls a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


OBJECTS: dict[str, Any] = {
    "list": [[0.0] * 1024] * 512,
    "list-of-tensors": [X] * 4,
    "list-of-words": ["a photo"] * 512,
    "tuple": (X, Y),
    "ndarray": np.zeros((31, 32), dtype=np.float32),
    "dict": {str(i): X for i in range(1000)},
    "word": "many\nlines\n" * 1000,
    "object": Verbose(),
    "function": lambda x: x,
    "int": 10**5000,
    "complex": complex(1, 2),
    "nan": float("nan"),
    "none": None,
    "bool": True,
}
TENSORS: dict[str, Tensor] = {
    "tokens": torch.zeros(4, 77, dtype=torch.int64),
    "labels": IDS,
    "mask": torch.ones(4, 3, dtype=torch.bool),
    "complex": torch.zeros(4, 3, dtype=torch.complex64),
    "float8": torch.zeros(4, 3).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(1.0),
    "row": X[0],
    "one-hidden": torch.zeros(4, 5, 3, 2, 1),
    "many-dimensions": torch.zeros((1,) * 60),
    "empty": X[:0],
    "meta": X.to("meta"),
    "sparse": X.to_sparse(),
    "csr": quietly(X.to_sparse_csr),
    "mkldnn": X.to_mkldnn(),
    "nested": quietly(lambda: torch.nested.nested_tensor([X, X[:2]])),
    "jagged": quietly(lambda: torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)),
    "quantized": quietly(lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)),
}
WRONG = {**OBJECTS, **{f"{name}-tensor": tensor for name, tensor in TENSORS.items()}}

# Valid arguments, by the name of the parameter.
RIGHT: dict[str, Any] = {
    **dict.fromkeys(("image", "text", "embeddings", "mx", "x", "y", "queries", "gallery"), X),
    **dict.fromkeys(("anchors", "members", "im", "s", "image_features", "text_features"), X),
    **dict.fromkeys(("images", "texts", "regions", "words", "captions"), X[None]),
    "cap_lens": [4],
    "opt": Namespace(raw_feature_norm="no_norm", agg_func="Mean", lambda_softmax=9.0),
    "fused": torch.stack([X, Y]),
    **dict.fromkeys(("scores", "image_to_text"), X @ Y.T),
    "loss": losses.MaxOfHingesLoss(),
    "logits": X[:, :2],
    "labels": IDS % 2,
    "match": lambda i, t: X[i, 0],
    "assignment": IDS % 2,
    **dict.fromkeys(("query_ids", "gallery_ids"), IDS),
    "num_clusters": 2,
    **dict.fromkeys(("sigma", "scale", "logit_scale", "logit_bias", "upper"), 0.5),
    "lower": 0.1,
    "image_tokens": torch.zeros(2, 3, 8),
    "text_tokens": torch.zeros(2, 3, 8),
    "dim": 8,
}
MODULES: dict[str, Any] = {name: getattr(losses, name) for name in losses.__all__}
CALLS: dict[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in F.__all__},
    **{name: getattr(ops, name) for name in ops.__all__ if name.islower()},
    **{
        f"{name}.from_scores": module().from_scores
        for name, module in MODULES.items()
        if hasattr(module, "from_scores")
    },
    # Its negatives are synthesised from embeddings, which are required unless there are none.
    "InfoCMRLoss.from_scores": partial(losses.InfoCMRLoss().from_scores, image=X, text=Y),
    **MODULES,
    **{f"{name}()": module().forward for name, module in MODULES.items()},
    "evaluate": retrieval.evaluate,
    "evaluate_scores": retrieval.evaluate_scores,
    "mean_average_precision": retrieval.mean_average_precision,
    "diagnostics": diagnostics,
    "HardNegativeSampler": mining.HardNegativeSampler,
    "HardNegativeSampler()": mining.HardNegativeSampler().__call__,
    "HardNegativeSampler.from_scores": mining.HardNegativeSampler().from_scores,
    "HardNegativeSynthesis": synthesis.HardNegativeSynthesis,
    "HardNegativeSynthesis()": synthesis.HardNegativeSynthesis(2).forward,
    "HardNegativeSynthesis.logits": synthesis.HardNegativeSynthesis(2).logits,
    "FusionHead": FusionHead,
    "FusionHead()": FusionHead(8, heads=2, layers=1).forward,
    "ContrastiveLoss": ContrastiveLoss,
    "ContrastiveLoss()": ContrastiveLoss().forward,
    "sgraf.ContrastiveLoss": LossOfScores,
    "sgraf.ContrastiveLoss()": LossOfScores().forward,
    "xattn_score_t2i": xattn_score_t2i,
    "xattn_score_i2t": xattn_score_i2t,
    "IntraLoss": lambda measure="cosine": IntraLoss(measure=measure)(X),  # refused when used
    "IntraLoss()": IntraLoss(measure="cosine").forward,
    "ClipLoss()": ClipLoss().forward,
    "SigLipLoss()": SigLipLoss().forward,
}
# A function may be any, and a truth is a truth.
ANYTHING_GOES = (
    "match",
    "at_r",
    "learnable",
    "detach",
    "output_dict",
    "sampler",
    "group",
    "progress",
)


def fault(error: BaseException, call: str) -> str | None:
    """Return the fault of an error message, None if it has none."""
    message = str(error)
    if not isinstance(error, (TypeError, ValueError)):
        return f"{error!r}"[:200]
    if "\n" in message or len(message) > MOST:
        return f"{len(message)} characters, {message.count(chr(10))} breaks: {message[:200]}"
    # A Module may name the function that it calls.
    named = re.match(r"(\w+)(\.\w+)?: ", message)
    names = {re.split(r"\W", name)[0] for name in CALLS}
    return None if named and named[1] in names else f"names no function: {message}"


def required(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: RIGHT[p.name] for p in parameters if p.default is p.empty}


def wrong_calls(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in inspect.signature(function).parameters:
        if name not in ANYTHING_GOES:
            for kind, value in WRONG.items():
                yield f"{name}={kind}", {**required(function), **partner(name), name: value}


def partner(name: str) -> dict[str, Tensor]:
    """Return the ids of the other side, which must come with those of one."""
    sides = ("image_ids", "text_ids"), ("x_ids", "y_ids"), ("anchor_ids", "member_ids")
    return {other: IDS for pair in sides if name in pair for other in pair if other != name}


@pytest.mark.parametrize("call", CALLS)
def test_errors_are_one_short_line(call: str) -> None:
    refused, faults = 0, []
    for which, arguments in wrong_calls(CALLS[call]):
        try:
            CALLS[call](**arguments)
        except Exception as error:
            refused += 1
            faults += [f"{which}: {found}" for found in [fault(error, call)] if found]
    assert refused
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("call", [name for name in CALLS if "(" in name or name.islower()])
def test_valid_calls_succeed(call: str) -> None:
    CALLS[call](**required(CALLS[call]))


@pytest.mark.parametrize("call", CALLS)
def test_numbers_of_numpy_are_numbers(call: str) -> None:
    """Learning rates and margins come out of NumPy's schedules, sizes out of its arrays."""
    function = CALLS[call]
    plain = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    plain = {name: RIGHT.get(name, value) for name, value in plain.items()}
    plain = {name: value for name, value in plain.items() if name not in ("learnable", "detach")}
    numbers = {name: value for name, value in plain.items() if type(value) in (int, float)}
    arguments = {**required(function), **numbers}
    if "upper" in arguments:
        arguments |= {"lower": 0.1, "upper": 0.5}
    wide = {
        name: np.int64(value) if type(value) is int else np.float32(value)
        for name, value in arguments.items()
        if type(value) in (int, float)
    }
    torch.manual_seed(0)
    expected = function(**arguments)
    torch.manual_seed(0)
    found = function(**{**arguments, **wide})
    if isinstance(found, torch.nn.Module) and found.__class__.__name__ in MODULES:
        inputs = required(found.forward)
        torch.manual_seed(0)
        expected = expected(**inputs)
        torch.manual_seed(0)
        found = found(**inputs)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected)
