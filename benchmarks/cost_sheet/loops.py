"""Launches as a fixed number plus a number per block of rows, inferred from launch sequences.

A loss that processes its rows in blocks repeats a few launches per block. If two batches differ
only by whole blocks, the longer launch sequence is the shorter one with whole blocks inserted.
Launches that grow in another way break this law and are reported.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from benchmarks.cost_sheet.counts import Count

SIZES = (16384, 24576, 32768)  # rows, at equal distances: multiples of every block
STEP = SIZES[1] - SIZES[0]
Launched = dict[str, int]  # launches by name


def sequence(counts: Iterable[Count]) -> list[str]:
    """Return the names of all launches in order."""
    return [count.name for count in counts for _ in range(count.launches)]


def inserted(shorter: Sequence[str], longer: Sequence[str]) -> list[list[str]]:
    """Return the segments inserted into a shorter sequence.

    If the sequences differ in another way, all additional launches are one segment.
    """
    segments = []
    matcher = SequenceMatcher(None, shorter, longer, autojunk=False)
    for what, _, _, begin, end in matcher.get_opcodes():
        if what in ("delete", "replace"):
            return [sorted((Counter(longer) - Counter(shorter)).elements())]
        if what == "insert":
            segments.append(list(longer[begin:end]))
    return segments


def period(segment: Sequence[str]) -> int:
    """Return the length of the shortest sequence that a segment repeats."""
    size = len(segment)
    return next(p for p in range(1, size + 1) if size % p == 0 and segment[p:] == segment[:-p])


def law(sequences: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return fixed launches, loops and violations of the law, from the launches at three sizes.

    A loop is given by the rows of a block, the launches of a block, and the number of such loops.
    """
    counts = [Counter(each) for each in sequences]
    breaks = {}
    for name in sorted(set().union(*counts)):
        few, more, many = (count[name] for count in counts)
        if many - more != more - few:
            breaks[name] = [few, more, many]
    loops: dict[str, dict[str, Any]] = {}
    total = 0
    for segment in [] if breaks else inserted(*sequences[1:]):
        length = period(segment)
        block = Counter(segment[:length])
        rows = STEP * length // len(segment)
        loop = {"rows": rows, "launches": dict(sorted(block.items())), "times": 0}
        loops.setdefault(str(loop), loop)["times"] += 1
        total += len(segment) * SIZES[-1] // STEP
    few, more, many = (len(each) for each in sequences)
    return {
        "listed": dict(sorted(counts[-1].items())),
        "from smaller": 2 * more - few,  # extrapolated from the two smaller sizes
        "fixed": many - total,
        "loops": list(loops.values()),
        "breaks": breaks,
    }


def per_block(loop: Mapping[str, Any]) -> int:
    """Return the launches per block, over all loops of its kind."""
    return int(loop["times"] * sum(loop["launches"].values()))


def expected(found: Mapping[str, Any], N: int) -> int:
    """Return the launches that a law allows at a size."""
    return int(found["fixed"] + sum(per_block(loop) * N // loop["rows"] for loop in found["loops"]))


def net(found: Mapping[str, Any] | None, N: int, launches: int) -> int:
    """Return the launches with one block per loop, or all launches if the law is broken."""
    if not found or found["breaks"] or launches != expected(found, N):
        return launches
    return int(found["fixed"] + sum(per_block(loop) for loop in found["loops"]))


def described(found: Mapping[str, Any]) -> str:
    """Return the law as text."""
    if found["breaks"]:
        grown = (f"{name} {counts}" for name, counts in found["breaks"].items())
        sizes = ", ".join(f"{N:,}" for N in SIZES)
        return f"follow no blocks: {'; '.join(grown)} at {sizes}"
    if not found["loops"]:
        return f"{found['fixed']} at every N"
    blocks: Counter[int] = Counter()
    for loop in found["loops"]:
        blocks[loop["rows"]] += per_block(loop)
    each = (f"{launches} per block of {rows:,} rows" for rows, launches in sorted(blocks.items()))
    return " + ".join([str(found["fixed"]), *each])
