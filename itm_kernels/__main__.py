"""`python -m itm_kernels info`: versions, the build, and what "auto" picks for each operator."""

import argparse
import json
import os
import sys
import textwrap
from typing import Any

from itm_kernels import __version__, backends
from itm_kernels._policies import POLICIES


def report() -> dict[str, Any]:
    """Return the report of `info --json`."""
    return {
        "itm_kernels": __version__,
        "versions": backends.versions(),
        "cpu": backends.processor(),
        "extension": {**backends.build_info(), "reason": backends.NOT_BUILT},
        "remedies": backends.remedies(),
        "operators": [row._asdict() for row in backends.available()],
        "policies": [policy._asdict() for policy in POLICIES],
    }


def info() -> str:
    """Return the report of `info`."""
    found = report()
    lines = [f"itm_kernels {found['itm_kernels']}"]
    lines += [f"{name:12}{value or 'not installed'}" for name, value in found["versions"].items()]
    cpu, extension = found["cpu"], found["extension"]
    screening = "on" if cpu["bf16_screening"] else "off"
    lines += [f"{'cpu':12}{cpu['instruction_set']}, {_threads(cpu['threads'])}, "]
    lines[-1] += f"bf16 screening {screening}"
    reason, operators = extension.pop("reason"), extension.pop("operators", None)
    lines += [f"{'extension':12}{reason or ', '.join(f'{k} {v}' for k, v in extension.items())}"]
    if operators:
        lines += [f"{'':12}kernels: {', '.join(f'{len(k)} for {d}' for d, k in operators.items())}"]
    lines += [f"{'get ' + name:12}{how}" for name, how in found["remedies"].items()]
    return "\n".join([*lines, "", *_table(found["operators"]), "", *_policies()])


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line per operator and device, then the numbered notes that they refer to."""
    width = max(len(row["operator"]) for row in rows) + 2
    lines = [f"{'operator':{width}}{'device':8}{'auto':11}notes"]
    notes: dict[str, int] = {}
    for row in rows:
        here = f" for {row['operator']} on {row['device']}"  # as the row states
        reasons = [f"{name}: {why.replace(here, '')}" for name, why in row["reasons"].items()]
        numbers = [notes.setdefault(note, len(notes) + 1) for note in [*row["ranges"], *reasons]]
        cells = f"{row['operator']:{width}}{row['device']:8}{row['auto']:11}"
        lines.append((cells + ", ".join(map(str, numbers))).rstrip())
    return [*lines, "", *(f"{number:>3}  {note}" for note, number in notes.items())]


def _policies() -> list[str]:
    """Return the choices between algorithms of one backend, with their reasons."""
    lines = ["algorithms of one backend"]
    wrapper = textwrap.TextWrapper(
        100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
    for policy in POLICIES:
        lines += wrapper.wrap(f"{policy.name}: {policy.choice} ({policy.reason})")
    return lines


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m itm_kernels", description=__doc__)
    parser.add_argument("--version", action="version", version=f"itm_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "info", help="versions, built backends, and the backend of each operator"
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    try:
        print(json.dumps(report(), indent=2) if options.json else info(), flush=True)
    except BrokenPipeError:  # the reader has closed its end early, as `head` does
        # Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
