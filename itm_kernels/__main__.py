"""`python -m itm_kernels info`: versions, the build, and what "auto" picks for each operator."""

import argparse

from itm_kernels import __version__, backends


def info() -> str:
    """Return the report that `info` prints."""
    lines = [f"itm_kernels {__version__}"]
    lines += [f"{name:12}{value or 'not there'}" for name, value in backends.versions().items()]
    built = backends.build_info()
    if built:
        operators = built.pop("operators")
        lines += [f"{'extension':12}" + ", ".join(f"{k} {v}" for k, v in built.items())]
        lines += [f"{'':12}kernels: {operators}"]
    else:
        lines += [f"{'extension':12}{backends.NOT_BUILT}"]
    rows = backends.available()
    width = max(len(row.operator) for row in rows) + 2
    lines += ["", f"{'operator':{width}}{'device':8}{'auto':11}why not the others"]
    for row in rows:
        reasons = [*row.ranges, *(f"{name}: {why}" for name, why in row.reasons.items())]
        lines.append(f"{row.operator:{width}}{row.device:8}{row.auto:11}" + "; ".join(reasons))
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m itm_kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, built backends and what each operator runs on")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
