"""Predicted time: the sum over launches of the largest overlapping term, the epilogue and a gap.

Products, HBM and L2 traffic overlap. The epilogue after the products of a tile does not, except for
the fraction that other programs on the same processor hide.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.rates import LAUNCH, Machine, rate_of

KIND_NAMES = {"half": "16-bit products", "tf32": "tf32 products"}


class Term(NamedTuple):
    """A term of a predicted time: the limiting resource, and the launch."""

    what: str
    where: str


def terms(count: Count, machine: Machine) -> dict[str, float]:
    """Return the seconds of a launch by resource; their sum is its time."""
    overlapping = {
        "HBM": count.hbm / machine.hbm,
        "L2": count.l2 / machine.l2,
        "chain": count.seconds,
    }
    if count.flop:
        rate = rate_of(machine, count.kind, count.depth) * count.ceiling
        overlapping[KIND_NAMES.get(count.kind, f"{count.kind} products")] = count.flop / rate
    after = {
        "instructions": count.instructions / machine.instructions,
        "exponentials": count.exponentials / machine.exponentials,
    }
    epilogue = max(after, key=lambda name: after[name])
    found = {"launches": count.launches * LAUNCH}
    if not count.flop:
        overlapping |= after
    elif after[epilogue]:
        found[epilogue] = count.exposed * after[epilogue]
        hidden = (1 - count.exposed) * after[epilogue]
        overlapping[f"hidden {epilogue}"] = hidden
    longest = max(overlapping, key=lambda name: overlapping[name])
    found[longest] = found.get(longest, 0) + overlapping[longest]
    return found


class Prediction(NamedTuple):
    """The time of a sequence of launches."""

    seconds: float
    largest: Term
    share: float  # the largest term as a fraction of the total

    def named(self) -> str:
        """Name the largest term."""
        where = f" of {self.largest.where}" if self.largest.where else ""
        return f"{self.largest.what}{where} {100 * self.share:.0f} %"


def predict(counts: Iterable[Count], machine: Machine) -> Prediction:
    """Return the predicted time of consecutive launches."""
    total: dict[Term, float] = defaultdict(float)
    for count in counts:
        for what, seconds in terms(count, machine).items():
            total[Term(what, "" if what == "launches" else count.name)] += seconds
    if not total:
        return Prediction(0, Term("nothing", ""), 0)
    whole = sum(total.values())
    largest = max(total, key=lambda term: (total[term], term))
    return Prediction(whole, largest, total[largest] / whole)
