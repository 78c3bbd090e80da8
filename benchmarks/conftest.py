"""The options, and the `compare` fixture, which benchmarks call with a row and its contenders."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import goals, limits, memory, results, rivals
from benchmarks.interleaved import SLOW, Contender, Row, Run, summary
from benchmarks.rivals import Builder, keops
from benchmarks.shapes import Size

QUICK_ROUNDS, LEAST_ROUNDS, MOST_ROUNDS = 2, 5, 40


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make bench` and `make bench-quick`."""
    add = parser.getgroup("itm_kernels").addoption
    add("--device", default="cpu", choices=("cpu", "cuda"), help="device of all tensors")
    add("--seconds", type=float, default=3.0, help="measured time per row, over all contenders")
    add("--quick", action="store_true", help="tiny sizes: only check that values are equal")
    add("--resume", action="store_true", help="keep the rows that this machine has measured")
    add("--goals", action="store_true", help="only rows that have a goal, and its contenders")
    add("--results", type=Path, help="folder of the JSON file; a quick run writes only if given")


def pytest_configure(config: pytest.Config) -> None:
    """Do not turn the warnings of other packages into errors; shorten compilation if quick."""
    config.addinivalue_line("filterwarnings", "default")
    if config.getoption("quick"):
        keops.compile_quickly()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Remove the host name from what pytest-benchmark stores."""
    machine_info.pop("node", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Number the rows for their progress lines."""
    for number, item in enumerate(items, start=1):
        item.stash[PLACE] = f"[{number}/{len(items)}]"


PLACE = pytest.StashKey[str]()
STORE = pytest.StashKey[results.Results]()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Return the device of all tensors. OpenMP sets the threads: all cores, or OMP_NUM_THREADS."""
    chosen: str = pytestconfig.getoption("device")
    if chosen == "cpu":
        memory.forbid_more_than_there_is()
    return chosen


@pytest.fixture(scope="session")
def store(pytestconfig: pytest.Config, device: str) -> results.Results | None:
    """Return this machine's results, with its limits measured; None if nothing is written."""
    folder = pytestconfig.getoption("results")
    if folder is None:
        if pytestconfig.getoption("quick"):
            return None
        folder = results.FOLDER
    facts = results.machine(device, torch.get_num_threads())
    found = results.Results(folder / f"{results.name(facts)}.json")
    keep = pytestconfig.getoption("resume") or pytestconfig.getoption("goals")
    found.begin(facts, rivals.versions(), keep)
    for name, rate in limits.measured(device).items():
        found.add("limits", name, rate)
    return found


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> bool:
    """Return whether this run only checks that everything runs."""
    return bool(pytestconfig.getoption("quick"))


@pytest.fixture
def sized(quick: bool) -> Callable[[Size], Size]:
    """Return the function that replaces sizes by tiny ones in a quick run."""
    return Size.tiny if quick else lambda size: size


@pytest.fixture
def compiled(quick: bool) -> Callable[[rivals.Function], Builder]:
    """Return torch.compile. A quick run only traces, without the C++ compiler."""
    return lambda function: rivals.compiled(function, "eager" if quick else "inductor")


@pytest.fixture
def compare(
    request: pytest.FixtureRequest, benchmark: Any, device: str, store: results.Results | None
) -> Iterator[Callable[..., None]]:
    """Measure our function and its rivals, and store the record.

    In a quick run a rival may be missing, but an installed one must work.
    """
    config = request.config

    def run(row: Row, ours: rivals.Function, truth: rivals.Function, **others: Builder) -> None:
        if store is not None and config.getoption("resume") and row.key in store.section("rows"):
            pytest.skip("kept from an earlier run")
        if config.getoption("goals"):
            wanted = goals.of(row.key, torch.backends.cpu.get_cpu_capability())
            if not wanted:
                pytest.skip("has no goal")
            others = {name: others[name] for name in wanted}
        exact = Run(row, truth, device, double=True)
        exact()
        expected = exact.found()
        del exact
        builders = {"ours": rivals.plain(ours), **others}
        contenders = []
        for name, builder in builders.items():
            contenders.append(Contender(name, row, builder, device))
            contenders[-1].compare(expected)
            contenders[-1].weigh()
        failed = [c.record["status"] for c in contenders if c.record["status"].startswith("fails")]
        assert not (failed and config.getoption("quick")), failed
        record = _measure(row, contenders, benchmark, config, device)
        benchmark.extra_info.update(record)
        if store is not None:
            store.add("rows", row.key, record)
        _report(config, request.node.stash[PLACE], row, record)

    yield run


def _measure(
    row: Row, contenders: list[Contender], benchmark: Any, config: pytest.Config, device: str
) -> dict[str, Any]:
    ours, *others = contenders
    probe = limits.Probe(row.work.kind, row.size.N, row.size.D, row.size.dtype, device)
    rates = [probe.rate()]

    def rest_of_the_round() -> None:
        rates.append(probe.rate())
        for contender in others:
            contender.measure()
        others.extend(others[:1])  # rotate, so that another one runs just before ours next time
        del others[:1]

    once = sum(c.estimate for c in contenders if c.estimate <= SLOW) + 1e-4
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(config.getoption("seconds") / once)))
    if config.getoption("quick"):
        rounds = QUICK_ROUNDS
    benchmark.pedantic(ours.measure, setup=rest_of_the_round, rounds=rounds)
    return summary(contenders, rates, row)


def _report(config: pytest.Config, place: str, row: Row, record: dict[str, Any]) -> None:
    mode = "both" if row.differentiable else "forward"
    parts = []
    for name, contender in record["contenders"].items():
        if mode not in contender:
            parts.append(f"{name}: {contender['status']}")
        elif name == "ours":
            ours = contender[mode]
            parts.append(f"{1000 * ours['median']:.3g} ms, {ours['percent_of_limit']:.0f} %")
        else:
            parts.append(f"{name} x {contender[mode]['ratio']['median']:.2f}")
    plugins: Any = config.pluginmanager
    reporter = plugins.get_plugin("terminalreporter")
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.ensure_newline()
        reporter.write_line(f"{place} {row.key}: {'; '.join(parts)}")
