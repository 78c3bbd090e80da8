"""The benchmarks' own arithmetic: ratios, comparisons, tables, names, the cluster's volumes.

That every benchmark runs and that every rival computes what we compute is `make bench-quick`.
"""

import json

import pytest
import torch

from benchmarks import (
    bench_fine_grained,
    cluster_model,
    goals,
    host_time,
    inputs,
    report,
    results,
    scaling,
)
from benchmarks.interleaved import Contender, Row, Run, summary
from benchmarks.limits import Work
from benchmarks.rivals import UnavailableError, eager, plain
from benchmarks.shapes import LARGE, WORDS, Size
from itm_kernels import functional
from processes import ROOT

SIZE = Size(20, 12)


def row() -> Row:
    return Row("max_of_hinges", SIZE, inputs.paired(SIZE, "cpu"), Work("product", 100.0, 50.0))


def truth(of: Row) -> list[torch.Tensor]:
    exact = Run(of, eager.max_of_hinges, "cpu", double=True)
    exact()
    return exact.found()


def test_another_value_is_refused():
    def wrong(image, text):
        return 1.01 * eager.max_of_hinges(image, text)

    contender = Contender("eager", row(), plain(wrong), "cpu")
    with pytest.raises(AssertionError, match="eager is 0.01 away from fp64"):
        contender.compare(truth(row()))


def test_a_wrong_gradient_is_refused():
    of = row()

    def half(image, text):
        value = eager.max_of_hinges(image, text)
        return value.detach() + (value - value.detach()) / 2

    contender = Contender("eager", of, plain(half), "cpu")
    with pytest.raises(AssertionError, match="gradient of eager"):
        contender.compare(truth(of))


def test_a_rival_that_cannot_run_is_shown_and_ours_is_not_excused():
    def missing():
        raise UnavailableError("not installed")

    def too_large():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    def broken():
        raise ValueError("no such size")

    statuses = [Contender("eager", row(), b, "cpu").record["status"] for b in (missing, too_large)]
    assert statuses == ["not installed", "out of memory"]
    record = Contender("eager", row(), broken, "cpu").record
    assert record == {"status": "fails: ValueError: no such size"}
    with pytest.raises(ValueError, match="no such size"):
        Contender("ours", row(), broken, "cpu")


def made(ours: list[float], rival: list[float]) -> dict:
    of = row()
    contenders = [
        Contender("ours", of, plain(functional.max_of_hinges_loss), "cpu"),
        Contender("eager", of, plain(eager.max_of_hinges), "cpu"),
    ]
    for contender, times in zip(contenders, (ours, rival), strict=True):
        contender.compare(truth(of))
        contender.weigh()
        contender.times = [(0.75 * t, 0.25 * t) for t in times]
    return summary(contenders, [300.0, 300.0, 300.0], of)


def test_ratios_are_taken_within_rounds():
    # The machine slows down tenfold in the last round: the ratio of medians would not be 2.
    record = made([1.0, 2.0, 10.0], [2.0, 4.0, 20.0])
    eager_both = record["contenders"]["eager"]["both"]
    assert eager_both["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    ours = record["contenders"]["ours"]["both"]
    assert ours["median"] == 2.0
    assert ours["percent_of_limit"] == pytest.approx(100 * 150 / 2 / 300)
    assert record["contenders"]["ours"]["forward"]["median"] == 1.5


def test_a_slower_row_is_listed_and_noise_is_not():
    slower = made([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    noisy = made([1.0, 1.0, 1.0], [0.5, 0.99, 2.0])
    faster = made([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    sentences = report.not_fastest({"slower": slower, "noisy": noisy, "faster": faster})
    assert len(sentences) == 1
    assert sentences[0].startswith("- slower: PyTorch eager 0.50; ")


def test_the_page_shows_every_contender(tmp_path):
    record = made([1.0, 2.0], [2.0, 4.0])
    record["contenders"]["keops"] = {"status": "out of memory"}
    machine = {"cpu": "c", "threads": 1, "instruction_set": "AVX2"}
    content = {
        "machine": machine,
        "versions": {"torch": "2", "inf-cl": ""},
        "limits": {},
        "commit": "c",
    }
    content |= {"rows": {"a": record}}
    page = report.page("name", json.loads(json.dumps(content)))
    assert "2.00 (2.00 to 2.00) |" in page
    assert "pykeops out of memory" in page
    assert "inf-cl not installed" in page
    section = report.performance_section({"name": content})
    readme = f"before\n{report.BEGIN}old\n{report.END}after"
    assert section in report.with_section(readme, section)
    assert "old" not in report.with_section(readme, section)


def test_machines_are_named_without_their_host():
    facts = {"device": "cpu", "cpu": "AMD EPYC", "cores": 2}
    assert results.name(facts) == "cpu-amd-epyc-2core"
    facts["cpu"] = "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz"
    assert results.name(facts) == "cpu-intel-xeon-platinum-8480c-2core"
    assert results.name({"device": "cuda", "gpu": "NVIDIA H200"}) == "cuda-nvidia-h200"


def test_a_run_with_chosen_instructions_has_a_file_of_its_own(monkeypatch):
    for name in results.CHOICES:
        monkeypatch.delenv(name, raising=False)
    whole = results.machine("cpu", 1)
    assert "chosen" not in whole
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    facts = results.machine("cpu", 1) | {"instruction_set": "AVX2"}
    assert results.name(facts) == f"{results.name(whole)}-avx2"
    sentence = report.machine_sentence({"machine": facts, "versions": {}, "commit": "c"})
    assert "1 threads (AVX2: `ATEN_CPU_CAPABILITY=avx2`), commit c" in sentence


# Operators with goals that a committed file may not have measured yet.
NOT_MEASURED = ("cross_attention/", "scan max_violation/", "late_interaction/")


def test_goals_are_held_against_rows_of_their_instruction_set():
    everything = report.load()
    on_cpus = [content for content in everything.values() if content["machine"]["device"] == "cpu"]
    assert on_cpus
    new = {key for key in goals.GOALS if key.startswith(NOT_MEASURED)}
    for content in on_cpus:
        chosen, rows = content["machine"]["instruction_set"], content["rows"]
        assert goals.GOALS.keys() - rows.keys() <= new
        for key in goals.GOALS.keys() & rows.keys():
            assert goals.of(key, chosen).keys() <= rows[key]["contenders"].keys()
    key = "max_of_hinges/N=128,D=1024,float32"
    record = made([1.0, 1.0, 1.0], [2.7, 2.7, 2.7])
    files = {
        name: {"machine": {"device": "cpu", "instruction_set": name}, "rows": {key: record}}
        for name in ("AVX512", "AVX2", "DEFAULT")
    }
    files["GPU"] = files["AVX512"] | {"machine": {"device": "cuda", "instruction_set": "AVX512"}}
    cells = "PyTorch eager | 2.70 (2.70 to 2.70)"
    assert goals.table(files).splitlines()[2:] == [
        f"| AVX512 | {key} | {cells} | 3 | no |",
        f"| AVX2 | {key} | {cells} | 2.5 | yes |",
    ]


def test_a_goal_names_its_contender():
    key = "cross_attention/R=36 L=20/N=128,D=1024,float32"
    record = made([1.0, 1.0], [3.0, 3.0])
    gram = record["contenders"]["eager"]
    record["contenders"] |= {"gram": gram, "scan": {"status": "not installed"}}
    content = {"machine": {"device": "cpu", "instruction_set": "AVX512"}, "rows": {key: record}}
    assert goals.table({"file": content}).splitlines()[2:] == [
        f"| AVX512 | {key} | SCAN's loop | not installed | 15 | no |",
        f"| AVX512 | {key} | Gram form in eager | 3.00 (3.00 to 3.00) | 1.5 | yes |",
        f"| AVX512 | {key} | PyTorch eager | 3.00 (3.00 to 3.00) | 4 | no |",
    ]


def test_goals_of_words_and_regions_are_of_rows_that_are_measured():
    size = bench_fine_grained.SIZES[0]
    for operator in ("cross_attention", "scan max_violation", "late_interaction"):
        assert bench_fine_grained.row_of(operator, size, WORDS[0], "cpu").key in goals.GOALS


def test_rows_are_kept_for_the_same_machine_and_versions_alone(tmp_path):
    path = tmp_path / "m.json"
    store = results.Results(path)
    store.begin({"cores": 2}, {"torch": "1"}, resume=False)
    store.add("rows", "a", {"x": 1.23456789})
    for facts, versions, resume, kept in (
        ({"cores": 2}, {"torch": "1"}, True, {"a": {"x": 1.235}}),
        ({"cores": 2}, {"torch": "1"}, False, {}),
        ({"cores": 4}, {"torch": "1"}, True, {}),
        ({"cores": 2}, {"torch": "2"}, True, {}),
    ):
        again = results.Results(path)
        again.begin(facts, versions, resume)
        assert again.section("rows") == kept


def test_data_is_as_dense_as_it_says():
    image, text = inputs.paired(Size(LARGE // 4, 256), "cpu")
    assert image.norm(dim=1).sub(1).abs().max() < 1e-5
    assert inputs.density(image, 0.5, 0.95) == pytest.approx(0.05, abs=0.015)
    lower, upper = inputs.band(image, 0.05)
    distance = torch.cdist(image, image, p=1.0)
    inside = ((distance > lower) & (distance < upper)).float().mean().item()
    assert inside == pytest.approx(0.05, abs=0.015)
    assert inputs.violations(image, text, eager.MARGIN)["violating_anchors"] > 0.9


def test_exponents_are_slopes():
    points = [{"N": N, "seconds": 1e-9 * N**2} for N in (128, 2048, 8192, 32768)]
    points[0]["seconds"] = 1.0
    assert scaling.exponent(points, "seconds") == pytest.approx(2)
    assert scaling.exponent(points[:3], "seconds") is None


def test_volumes_of_the_cluster_are_the_counted_ones():
    # W = 8, B = 4096, D = 1024, MB: counted by hand from the schemes' descriptions.
    found = [
        round(cluster_model.volume(s.name, 8, 4096, 1024) / 1e6) for s in cluster_model.SCHEMES
    ]
    assert found == [252, 177, 235, 738]


def test_the_committed_model_of_a_cluster_is_the_computed_one():
    path = ROOT / "benchmarks/results/cluster-model.md"
    assert path.read_text() == cluster_model.table()


def test_the_host_time_of_a_step_is_compared_loss_by_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_time, "CALLS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr("sys.argv", ["host_time", "--rounds", "1", "--only", "InfoNCELoss"])
    host_time.main()
    assert "| InfoNCELoss |" in capsys.readouterr().out
    assert {"MaxOfHingesLoss", "IMCLoss", "ITOLoss"} <= set(host_time.contests())
