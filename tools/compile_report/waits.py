"""Counts how often a kernel's loops wait for memory, from machine code.

A load from L2 takes hundreds of cycles, however many are in flight. A loop that issues several
loads before it uses the first waits once for all; one that uses each at once waits each time.
"""

import re
from typing import NamedTuple

# Kernels whose loops reduce scores or partial sums.
REDUCTIONS = (
    r"(max_of_hinges|hardest_negatives|log_sum_exp|sigmoid|sum_of_hinges|score_gradient"
    r"|hinge_gradient|stored_band|kmeans_plus_plus|add_parts|imc|info_nce|sigmoid_total)_kernel"
)


class Block(NamedTuple):
    """A basic block: instructions without a jump into or out of their middle."""

    code: list[str]
    following: list[int]  # successors


def blocks(code: list[str]) -> list[Block]:
    """Split a kernel's instructions and labels into basic blocks."""
    cut: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in code:
        if line.endswith(":"):
            if cut[-1]:
                cut.append([])
            labels[line[:-1]] = len(cut) - 1
            continue
        cut[-1].append(line)
        if re.search(r"\b(BRA|EXIT|RET|BRX|JMP)\b", line):
            cut.append([])
    found = []
    for i, lines in enumerate(cut):
        last = lines[-1] if lines else ""
        jump = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", last)
        # With a predicate, as a prefix or as an operand of BRA, the next block may follow too.
        ends = re.match(r"(BRA(\.\w+)* `|EXIT|RET|BRX|JMP)", last)
        following = [labels[jump[1]]] if jump and jump[1] in labels else []
        if not ends and i + 1 < len(cut):
            following.append(i + 1)
        found.append(Block(lines, following))
    return found


def reached(following: list[list[int]], start: int, without: int) -> set[int]:
    """Return the blocks that can be reached from `start` without passing through `without`."""
    seen, left = set(), [start]
    while left:
        if (at := left.pop()) not in seen and at != without:
            seen.add(at)
            left += following[at]
    return seen


def loops(parts: list[Block]) -> dict[int, set[int]]:
    """Return the blocks of every loop by its header, which dominates them."""
    after = [part.following for part in parts]
    before: list[list[int]] = [[] for _ in parts]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)
    alive, found = reached(after, 0, -1), dict[int, set[int]]()
    for last in alive:
        for first in after[last]:
            if first == last or (first <= last and last not in reached(after, 0, first)):
                found.setdefault(first, {first}).update(reached(before, last, first))
    return found


def registers(line: str) -> set[int]:
    """Return the registers that a global load writes; none for other instructions."""
    load = re.match(r"(?:@!?\w+ )?LDG((?:\.\w+)*) R(\d+)\b", line)
    if load is None:
        return set()
    width = re.search(r"\.(64|128|256)\b", load[1])
    return {int(load[2]) + i for i in range(int(width[1]) // 32 if width else 1)}


def order(parts: list[Block]) -> list[int]:
    """Return the reachable blocks in reverse postorder: predecessors first, except in loops."""
    done: list[int] = []
    seen, stack = {0}, [(0, iter(parts[0].following))]
    while stack:
        at, following = stack[-1]
        if (new := next((i for i in following if i not in seen), None)) is None:
            done.append(stack.pop()[0])
        else:
            seen.add(new)
            stack.append((new, iter(parts[new].following)))
    return done[::-1]


# Loads in flight: each destination register -> the block and position of its load.
Pending = dict[int, tuple[int, int]]


def of_loops(code: list[str]) -> list[list[int]]:
    """Return, for every loop, how many of its loads are in flight at each wait.

    Waits of inner loops count for those alone. Where paths meet, the path with the fewest loads
    counts.
    """
    parts = blocks(code)
    known = loops(parts)
    found: dict[int, list[int]] = {}
    ends: dict[int, Pending] = {}
    for i in order(parts):
        ways = [ends[j] for j in ends if i in parts[j].following and ends[j]]
        few = min(ways, key=lambda way: len(set(way.values())), default={})
        pending = dict(few)
        for place, line in enumerate(parts[i].code):
            fills = registers(line)
            operands = line.split(",", 1)[-1] if fills else line
            if pending.keys() & {int(name) for name in re.findall(r"\bR(\d+)\b", operands)}:
                loads = sorted(set(pending.values()))
                last = max(block for block, _ in loads)
                around = [first for first in known if last in known[first]]
                if around:
                    loop = min(around, key=lambda first: len(known[first]))
                    count = sum(block in known[loop] for block, _ in loads)
                    found.setdefault(loop, []).append(count)
                pending = {}
            pending |= dict.fromkeys(fills, (i, place))
        ends[i] = pending
    return [found[loop] for loop in sorted(found)]


def check(name: str, code: list[str]) -> str:
    """Return the loads in flight in a reduction's loops; raise if a loop waits for only one."""
    found = of_loops(code)
    if not found or any(1 in counts for counts in found):
        raise RuntimeError(f"{name}: a loop waits for a single load: {found}")
    return f"loads in flight when its loops wait: {found}"
