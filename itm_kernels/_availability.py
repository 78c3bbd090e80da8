"""Which backend runs which operator, as a table for people: `backends.available`."""

from typing import NamedTuple

from itm_kernels import backends


class Availability(NamedTuple):
    """What "auto" picks for one operator on one device, and why not the others."""

    operator: str
    device: str
    auto: str  # for large batches
    ranges: list[str]  # where it picks something else
    reasons: dict[str, str]  # backend -> why it is not there; empty for those that are


def table() -> list[Availability]:
    """Return, for each operator and device type, what "auto" picks and why not the others."""
    table = []
    for operator in backends.OPERATORS:
        for device in backends.DEVICES:
            reasons = {
                name: backends.why_not(operator, device, name)
                for name in backends.PREFERENCE[device]
            }
            table.append(
                Availability(
                    operator,
                    device,
                    backends.choose(operator, device),
                    _ranges(operator, device),
                    {name: reason for name, reason in reasons.items() if reason is not None},
                )
            )
    return table


def _ranges(operator: str, device: str) -> list[str]:
    """Say where "auto" leaves the order of backends.PREFERENCE, for backends that are there."""
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
