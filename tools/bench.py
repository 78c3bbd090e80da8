"""Ours against plain PyTorch, torch.compile and installed packages, over the sizes of a GPU.

The benchmarks' own race (interleaved rounds, values compared with fp64 first) without pytest. Each
row's rate stands beside that of a product of its size, measured in the same rounds.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks import inputs, limits, memory, results, rivals
from benchmarks.limits import Work
from benchmarks.race import Contender, Row, Run, summary
from benchmarks.rivals import Builder, Function, eager, keops, packages, plain
from benchmarks.shapes import Size
from itm_kernels import functional
from tools.journal import Check, Setting

ROWS, WIDTHS = (4096, 16384, 1024, 128, 32768), (1024, 512)  # the telling ones first
DTYPES = (torch.bfloat16, torch.float32)
ROUNDS, TINY_ROUNDS = 15, 2
INTRA_MODAL: dict[str, Any] = {"metric": "cosine", "mode": "official", "lower": 0.05, "upper": 0.5}
Packages = Callable[[Size], dict[str, Builder]]


def hinges(hardest: bool, size: Size) -> dict[str, Builder]:
    """Return the packages that compute hinges over all pairs."""
    return {"metric_learning": partial(packages.metric_learning_hinges, hardest=hardest)}


def contrastive(size: Size) -> dict[str, Builder]:
    """Return the packages that compute InfoNCE."""
    nt_xent = partial(packages.metric_learning_nt_xent, size.N)
    found: dict[str, Builder] = {
        "open_clip": packages.clip,
        "metric_learning": nt_xent,
        "inf_cl": packages.inf_cl,
        "memeff": packages.memeff_clip,
    }
    if size.dtype == torch.float32:
        found["keops"] = keops.info_nce
    return found


# name: ours, the formula, products forward and backward, operators below, packages
LOSSES: dict[str, tuple[Function, Function, float, float, tuple[str, ...], Packages]] = {
    "max_of_hinges": (
        functional.max_of_hinges_loss, eager.max_of_hinges, 1, 0, ("max_of_hinges",),
        partial(hinges, True),
    ),
    "info_nce": (
        partial(functional.info_nce_loss, logit_scale=eager.SCALE), eager.info_nce, 1, 2,
        ("log_sum_exp",), contrastive,
    ),
    "sum_of_hinges": (
        functional.sum_of_hinges_loss, eager.sum_of_hinges, 1, 2, ("sum_of_hinges",),
        partial(hinges, False),
    ),
    "sigmoid": (
        partial(functional.sigmoid_loss, logit_scale=eager.SCALE, logit_bias=eager.BIAS),
        eager.sigmoid, 1, 2, ("sigmoid",),
        lambda size: {"open_clip": packages.siglip, "siglip_kernel": packages.siglip_kernel},
    ),
    "imc loss": (
        functional.imc_loss, eager.imc, 2, 2, ("max_of_hinges", "intra_modal"), lambda size: {},
    ),
    "intra_modal": (
        partial(functional.intra_modal_constraint, **INTRA_MODAL),
        partial(eager.intra_modal, **INTRA_MODAL), 0.5, 1, ("intra_modal",), lambda size: {},
    ),
}  # fmt: skip


def row_of(name: str, size: Size, device: str) -> Row:
    """Return the row of a loss: its tensors and its least work."""
    _, _, forward, backward, uses, _ = LOSSES[name]
    sides = inputs.paired(size, device)
    one = 2.0 * size.N * size.N * size.D
    # The gradient of hinges over hardest pairs is a gather of four rows per pair.
    work = Work("product", forward * one, backward * one or 4.0 * size.N * size.D)
    return Row(name, size, sides[:1] if name == "intra_modal" else sides, work, uses=uses)


def truth(row: Row, formula: Function, device: str) -> list[torch.Tensor] | None:
    """Return value and gradients in fp64, None where they do not fit."""
    try:
        exact = Run(row, formula, device, double=True)
        exact()
        return exact.found()
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        return None


def race(name: str, size: Size, setting: Setting, store: results.Results) -> dict[str, Any]:
    """Measure one row, write it, and return the ratios."""
    ours, formula, _, _, _, others = LOSSES[name]
    device = setting.device
    row = row_of(name, size, device)
    expected = truth(row, formula, device)
    empty(device)
    builders = {
        "ours": plain(ours),
        "eager": plain(formula),
        "compile": rivals.compiled(formula, "eager" if setting.tiny else "inductor"),
        **others(size),
    }
    contenders = []
    for rival, builder in builders.items():
        contenders.append(Contender(rival, row, builder, device))
        if expected is not None:
            compare(contenders[-1], expected)
        empty(device)
    if contenders[0].run is None:
        raise RuntimeError(f"ours: {contenders[0].record['status']}")
    probe = limits.Probe(row.work.kind, size.N, size.D, size.dtype, device)
    rates = []
    for number in range(TINY_ROUNDS if setting.tiny else ROUNDS):
        rates.append(probe.rate())
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.measure()
    record = summary(contenders, rates, row)
    store.add("rows", row.key, record)
    return brief(record)


def compare(contender: Contender, expected: list[torch.Tensor]) -> None:
    """Hold a contender against fp64. A wrong rival is left out; ours is not."""
    try:
        contender.compare(expected)
    except Exception as error:
        if contender.name == "ours":
            raise
        contender.run = None
        out = memory.is_out_of_memory(error)
        contender.record = {"status": "out of memory" if out else f"fails: {str(error)[:160]}"}


def empty(device: str) -> None:
    """Give cached memory back, so that one contender's does not take another's."""
    if device == "cuda":
        torch.cuda.empty_cache()


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the summary shows: times of ours, and how many times longer others take."""
    found: dict[str, Any] = {"backends": record["backends"]}
    for name, contender in record["contenders"].items():
        if "both" not in contender:
            found[name] = contender["status"]
        elif name == "ours":
            for mode in ("forward", "backward", "both"):
                found[f"{mode} ms"] = 1000 * contender[mode]["median"]
            found["TFLOP/s"] = contender["both"]["rate"] / 1e12
            found["% of product"] = contender["both"]["percent_of_limit"]
            found["peak MiB"] = (contender.get("peak_memory") or 0) / 2**20
        else:
            found[name] = {
                mode: contender[mode]["ratio"]["median"] for mode in ("forward", "backward", "both")
            }
    return results.rounded(found)


def sizes(tiny: bool) -> list[Size]:
    """Return the sizes, the telling ones first."""
    if tiny:
        return [Size(33, 24)]
    return [Size(N, D, dtype) for D, N, dtype in product(WIDTHS, ROWS, DTYPES)]


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per row."""
    device = setting.device
    facts = results.machine(device, torch.get_num_threads())
    store = results.Results(setting.out / f"{results.name(facts)}.json")
    store.begin(facts, rivals.versions(), resume=True)
    return [
        Check(f"bench/{name}/{size}", partial(race, name, size, setting, store))
        for size in sizes(setting.tiny)
        for name in LOSSES
    ]
