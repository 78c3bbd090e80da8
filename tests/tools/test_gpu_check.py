"""`make gpu-check` on the CPU at tiny sizes: every step runs once and is recorded."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import interleaved
from benchmarks.interleaved import Contender
from benchmarks.rivals import plain
from benchmarks.shapes import Size
from itm_kernels import backends, functional
from processes import Forked, run
from tools.gpu_check import bench, runner, suite, summary, values
from tools.gpu_check.goal_table import ENTRIES
from tools.gpu_check.journal import Check, Journal, Setting, SkippedError, Worker

FIRST_MINUTES = 9.0  # of a call of ten: predictions must fit into them
RUN = "1.0.1"  # the first of one process
compiled = pytest.mark.skipif(bool(backends.NOT_BUILT), reason="the extension is not built")


def command(out: Path, *steps: str) -> list[str]:
    """Return the arguments of a rehearsal of some steps."""
    return ["--device", "cpu", "--tiny", "--out", str(out), "--steps", *steps]


def test_the_command_line_starts_a_process_for_a_step(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "tools.gpu_check", *command(tmp_path, "facts"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = Journal(tmp_path / "records.jsonl").latest()
    assert set(found) == {f"facts/{name}" for name in ("machine", "gpu", "picks", "rates")}
    assert found["facts/rates"]["status"] == "passed"
    assert "| facts | " in done.stdout


@compiled
def test_every_step_runs_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(step: str, setting: Setting, run: str) -> Forked:
        return Forked(runner.work, step, setting, run)

    # Steps are forks of this process, which has imported torch and its compiler already.
    torch.compile(functional.max_of_hinges_loss, backend="aot_eager")(*torch.eye(4).expand(2, 4, 4))
    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(interleaved, "MOST", 1)  # runs of a contender in a round
    steps = [step for step in runner.STEPS if step != "build"]  # would replace the loaded extension
    assert runner.main(command(tmp_path, *steps)) == 0
    lines = Journal(tmp_path / "records.jsonl").latest()
    assert {key.split("/")[0] for key in lines} == set(steps)
    passed = {key for key, line in lines.items() if line["status"] == "passed"}
    assert "core/native/info_nce/bf16/N=33,D=17,ids" in passed
    assert "values/native/info_nce/tf32/N=33,D=17,ids" in passed
    assert "contract/compile/native/imc-l1" in passed
    assert {f"bench/{name}" for name in ENTRIES} <= {key.rsplit("/", 1)[0] for key in passed}
    text = (tmp_path / "summary.md").read_text()
    assert "| max_of_hinges/N=33,D=24,float32 | native |" in text
    assert "| kmeans/N=33,D=24,float32 | native |" in text
    assert len(list(tmp_path.iterdir())) <= 8  # the most that a rented machine may send back

    size = (tmp_path / "records.jsonl").stat().st_size
    assert runner.main(command(tmp_path, "values")) == 0
    assert (tmp_path / "records.jsonl").stat().st_size == size


def test_the_most_important_steps_are_predicted_to_end_within_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "backends_here", lambda device: ["triton", "native"])
    assert runner.STEPS[:4] == ("facts", "build", "core", "bench")
    here = Setting("cpu", False, tmp_path, 0.0)
    predicted = runner.plan(runner.STEPS[:4], here)
    assert sum(predicted.values()) <= 60 * FIRST_MINUTES, predicted


def test_every_row_of_the_goal_table_is_measured_at_its_sizes() -> None:
    rows = list(bench.rows(tiny=False))
    assert {name for name, _ in rows} == set(ENTRIES)
    of_4096 = {name for name, size in rows[: len(ENTRIES)] if size.N == 4096}
    assert {"info_nce", "max_of_hinges", "sigmoid", "intra_modal cosine"} <= of_4096
    for N in (128, 32768):
        assert ("info_nce", Size(N, 1024, torch.bfloat16)) in rows


def test_results_of_another_folder_are_continued(tmp_path: Path) -> None:
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    Worker("values", setting(earlier), RUN).work([Check("values/a", dict)], lambda: False)
    assert runner.resume(earlier, out) == ["records.jsonl"]
    assert not Worker("values", setting(out), "2.0.1").ordered([Check("values/a", dict)])
    with pytest.raises(SystemExit, match="has records of its own"):
        runner.resume(earlier, out)
    with pytest.raises(SystemExit, match="no records.jsonl to resume from"):
        runner.resume(tmp_path / "nowhere", tmp_path / "new")


def test_without_fp64_memory_and_rounds_are_still_known() -> None:
    name, size = "max_of_hinges", Size(33, 24)
    row = ENTRIES[name].prepare(size, "cpu").row
    contender = Contender("ours", row, plain(functional.max_of_hinges_loss), "cpu")
    bench.check_contender(contender, None)
    assert contender.estimate > 0
    assert "peak_memory" in contender.record
    assert "error" not in contender.record


def test_a_suite_records_its_progress(tmp_path: Path) -> None:
    here = setting(tmp_path)
    suite.note(here, "test_ops.py", 12, ["tests/test_ops.py::test_a"])
    line = here.journal.latest()["suite/test_ops.py so far"]
    assert (line["status"], line["tests"]) == ("failed", 12)
    assert summary.write(tmp_path) == 1


def setting(out: Path) -> Setting:
    return Setting("cpu", True, out, time.time() + 60)


def test_a_failure_is_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    ran: list[str] = []

    def fails() -> None:
        ran.append("fails")
        raise ValueError("first line\n\nsecond line")

    def skipped() -> None:
        raise SkippedError("no such tool")

    checks = [
        Check("values/a", fails),
        Check("values/b", skipped),
        Check("values/c", lambda: ran.append("c")),
    ]
    assert Worker("values", setting(tmp_path), RUN).work(checks, lambda: False)
    assert ran == ["fails", "c"]
    lines = Journal(tmp_path / "records.jsonl").latest()
    assert [line["status"] for line in lines.values()] == ["failed", "skipped", "passed"]
    assert lines["values/a"]["error"].startswith("ValueError at test_gpu_check.py:")
    assert lines["values/a"]["error"].endswith("first line\nsecond line")
    assert summary.write(tmp_path) == 1
    assert "second line" in (tmp_path / "summary.md").read_text()
    # Nothing runs again in the same run; the next one repeats what has not passed.
    assert Worker("values", setting(tmp_path), RUN).work(checks, lambda: False)
    assert ran == ["fails", "c"]
    assert Worker("values", setting(tmp_path), "2.0.1").work(checks, lambda: False)
    assert ran == ["fails", "c", "fails"]


def test_a_broken_device_ends_the_process(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("illegal memory access")

    checks = [Check("values/a", fails), Check("values/b", fails)]
    assert not Worker("values", setting(tmp_path), RUN).work(checks, lambda: True)
    assert [check.key for check in Worker("values", setting(tmp_path), RUN).ordered(checks)] == [
        "values/b"
    ]


def test_other_sources_are_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("values/a", dict)]
    Worker("values", setting(tmp_path), RUN).work(checks, lambda: False)
    assert not Worker("values", setting(tmp_path), "2.0.1").ordered(checks)
    monkeypatch.setattr("tools.gpu_check.journal.digest", lambda step: "other")
    assert Worker("values", setting(tmp_path), "2.0.1").ordered(checks)


def test_processes_share_the_checks(tmp_path: Path) -> None:
    checks = [Check(f"values/{n}", dict) for n in range(7)]
    shares = [Worker("values", setting(tmp_path), f"1.{n}.3").ordered(checks) for n in range(3)]
    assert sorted(check.key for share in shares for check in share) == [c.key for c in checks]


def test_a_check_that_hangs_is_killed(tmp_path: Path) -> None:
    here = setting(tmp_path)
    here.journal.add("values/a", "started", limit=0.0, run=RUN)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert runner.watch(process, here, RUN) == ("failed", "hangs: killed")
    assert process.returncode


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "records.jsonl")
    journal.add("values/a", "passed")
    with journal.path.open("a") as file:
        file.write(json.dumps({"key": "values/b", "status": "passed"})[:20])
    assert list(journal.latest()) == ["values/a"]
