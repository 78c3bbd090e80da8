"""The backends of every operator as a table for people: `backends.available`."""

from typing import NamedTuple

from itm_kernels import backends

PARTS = "parts"  # for a whole loss: its operators, one by one


class Availability(NamedTuple):
    """What "auto" picks for one operator on one device, and why not the other backends."""

    operator: str
    device: str
    auto: str  # for large batches
    ranges: list[str]  # sizes for which it picks another backend
    reasons: dict[str, str]  # backend -> why it cannot run the operator; no entry if it can


def table() -> list[Availability]:
    """Return what "auto" picks for each operator and device, operators before whole losses."""
    operators = [*sorted(backends.OPERATORS), *sorted(backends.TOTALS)]
    return [_row(operator, device) for operator in operators for device in backends.DEVICES]


def _row(operator: str, device: str) -> Availability:
    whole = operator in backends.TOTALS
    auto = (backends.choose_total if whole else backends.choose)(operator, device) or PARTS
    reasons = {
        name: reason
        for name in backends.PREFERENCE[device]
        if (reason := backends.why_not(operator, device, name)) is not None
    }
    return Availability(operator, device, auto, _ranges(operator, device), reasons)


def _ranges(operator: str, device: str) -> list[str]:
    """Describe where "auto" departs from backends.PREFERENCE, for the backends that can run."""
    words = []
    for (on, backend, name, metric), found in backends.RANGES.items():
        if (on, name) != (device, operator) or backends.why_not(
            operator, device, backend
        ) is not None:
            continue
        if found.first_rows == backends.MANY:
            limit = f"{backend} for {metric}" if metric else f"{backend} for any rows"
        else:
            limit = f"{backend} up to {found.first_rows:,} rows"
            if found.most_rows != backends.MANY:
                limit += f", possible up to {found.most_rows:,}"
        words.append(f"{limit} ({found.reason})")
    return words
