"""Choice of a backend: the picks of "auto", refusals with their reasons, the output of `info`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock, patch

import pytest
import torch

import itm_kernels
from eager_backend import NAMESPACE, as_native
from itm_kernels import __main__, backends, losses
from itm_kernels._policies import POLICIES
from processes import ROOT

IMAGE = torch.eye(3)


def test_auto_falls_through_to_the_reference() -> None:
    empty = {"cpu": frozenset[str](), "cuda": frozenset[str]()}
    with patch.dict(backends.NATIVE_KERNELS, empty):
        assert backends.resolve("max_of_hinges", IMAGE, "auto") is None


def test_auto_prefers_what_the_table_prefers() -> None:
    with as_native():
        assert backends.resolve("max_of_hinges", IMAGE, "auto") == NAMESPACE
        assert backends.resolve("max_of_hinges", IMAGE, "reference") is None
        assert backends.resolve("max_of_hinges", IMAGE.to("meta"), "auto") is None


def test_auto_takes_compiled_kernels_for_one_pair() -> None:
    with as_native():
        for operator in ("log_sum_exp", "max_of_hinges"):
            assert backends.choose(operator, "cpu", (1, 1)) == "native"
        assert backends.resolve("log_sum_exp", IMAGE, "native", (1, 1)) == NAMESPACE


@contextmanager
def cuda(triton: bool = True) -> Iterator[None]:
    """Pretend that all CUDA kernels are available."""
    operators = frozenset(backends.OPERATORS)
    with (
        patch.multiple(backends, NOT_BUILT="", HAS_TRITON=triton, TRITON_FILES=operators),
        patch.dict(backends.NATIVE_KERNELS, cuda=operators),
    ):
        yield


def test_auto_takes_few_launches_for_small_batches_on_cuda() -> None:
    rows = 256
    for operator in ("max_of_hinges", "log_sum_exp"):
        with cuda():
            assert backends.choose(operator, "cuda", (rows, 1)) == "native"
            assert backends.choose(operator, "cuda", (1, rows + 1)) == "triton"
            assert backends.choose(operator, "cuda") == "triton"
            assert f"native up to {rows} rows, possible up to 1,024" in __main__.info()
        with cuda(triton=False):
            assert backends.choose(operator, "cuda", (1024, 1024)) == "native"
            assert backends.choose(operator, "cuda", (1025, 1)) == "reference"


def test_auto_takes_native_l1_on_cuda() -> None:
    with cuda():
        for operator in ("similarity", "intra_modal"):
            assert backends.choose(operator, "cuda", metric="l1") == "native"
            assert backends.choose(operator, "cuda", metric="cosine") == "triton"
        assert "native for l1 (l1 is not a matrix product)" in __main__.info()
        assert "native up to 256 rows (five or six launches" in __main__.info()  # or any number


def test_beyond_its_range_a_kernel_is_refused_with_the_sizes() -> None:
    # A fake device: only the tensor's device is read.
    like = Mock(device=torch.device("cuda"))
    with (
        cuda(triton=False),
        pytest.raises(
            RuntimeError,
            match=r"^backend 'native' cannot run sigmoid on cuda \(native: supports at most "
            r"1,024 rows per side, got 3 x 2,000; triton: triton is not installed; ",
        ),
    ):
        backends.resolve("sigmoid", like, "native", (3, 2000))


def test_ranges_name_what_exists() -> None:
    for device, backend, operator, _ in backends.RANGES:
        assert device in backends.DEVICES
        assert backend in backends.NAMESPACES
        assert operator in (*backends.OPERATORS, *backends.TOTALS)


@pytest.mark.parametrize(
    ("patches", "device", "backend", "reason"),
    [
        (
            {"NOT_BUILT": "the extension is not built"},
            "cpu",
            "native",
            "the extension is not built",
        ),
        ({"NOT_BUILT": ""}, "cuda", "native", "no native kernel for ranks on cuda"),
        ({"HAS_TRITON": False}, "cuda", "triton", "triton is not installed"),
        ({"HAS_TRITON": True, "INTERPRETED": False}, "cpu", "triton", "TRITON_INTERPRET=1"),
        ({"HAS_TRITON": True, "INTERPRETED": True}, "cpu", "triton", "no triton kernel for ranks"),
    ],
)
def test_every_missing_backend_has_a_reason(
    patches: dict[str, object], device: str, backend: str, reason: str
) -> None:
    with (
        patch.multiple(backends, TRITON_FILES=frozenset(), **patches),
        patch.dict(backends.NATIVE_KERNELS, cpu=frozenset(), cuda=frozenset()),
    ):
        assert reason in str(backends.why_not("ranks", device, backend))


def test_an_explicit_request_is_never_replaced() -> None:
    with (
        patch.multiple(backends, NOT_BUILT="the extension is not built", HAS_TRITON=False),
        pytest.raises(
            RuntimeError,
            match=r"max_of_hinges_loss: backend 'native' cannot run max_of_hinges on cpu "
            r"\(native: the extension is not built; triton: triton is not installed; "
            r"reference: available\)",
        ),
    ):
        losses.MaxOfHingesLoss(backend="native")(IMAGE, IMAGE)


def test_unknown_backend_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="^backend must be one of 'auto', .*got 'cuda'"):
        backends.resolve("ranks", IMAGE, "cuda")


def test_info_lists_every_operator_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["itm_kernels", "info"]):
        __main__.main()
    printed = capsys.readouterr().out
    rows = [line.split()[:2] for line in printed.splitlines()]
    for operator in (*backends.OPERATORS, *backends.TOTALS):
        for device in backends.DEVICES:
            assert [operator, device] in rows
    assert torch.__version__ in printed


def test_info_shows_the_build_and_what_auto_picks() -> None:
    build = {"compiler": "gcc 99", "operators": {"cpu": ["ranks"], "cuda": []}}
    with as_native(), patch.object(backends, "build_info", lambda: dict(build)):
        report = __main__.info()
    assert "compiler gcc 99" in report
    assert any(line.split()[:3] == ["ranks", "cpu", "native"] for line in report.splitlines())


def test_info_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "itm_kernels", "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "max_of_hinges" in done.stdout


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["itm_kernels", "inform"]), pytest.raises(SystemExit) as done:
        __main__.main()
    assert done.value.code == 2
    assert "invalid choice: 'inform'" in capsys.readouterr().err


def test_info_prints_a_reason_once() -> None:
    with patch.multiple(backends, NOT_BUILT="the extension is not built", HAS_TRITON=False):
        report = __main__.info()
    assert report.count("native: the extension is not built") == 1
    assert report.count("triton is not installed") == 1
    with patch.multiple(backends, NOT_BUILT="", HAS_TRITON=False):
        assert __main__.info().count("triton is not installed") == 1


def test_info_gives_the_remedy_for_missing_kernels() -> None:
    command = "ITM_KERNELS_BUILD=1 pip install --no-build-isolation ."
    with patch.multiple(backends, NOT_BUILT="the extension is not built"):
        assert command in __main__.info()
    with patch.multiple(backends, NOT_BUILT=""):
        assert command not in __main__.info()
    for cuda_of_torch, told in (("13.0", True), (None, False)):
        with (
            patch.multiple(backends, HAS_TRITON=False),
            patch.object(torch.version, "cuda", cuda_of_torch),
        ):
            assert ("pip install triton" in __main__.info()) is told


def test_info_shows_the_processor() -> None:
    found = backends.processor()
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == torch.get_num_threads()
    screening = {True: "on", False: "off"}[found["bf16_screening"]]
    assert f"{found['instruction_set']}, 1 thread, bf16 screening {screening}" in __main__.info()
    if backends._C is None or found["instruction_set"] != "AVX512":
        assert screening == "off"


def test_info_for_programs_has_the_same_content(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["itm_kernels", "info", "--json"]):
        __main__.main()
    found = json.loads(capsys.readouterr().out)
    assert found["itm_kernels"] == itm_kernels.__version__
    assert found["versions"] == backends.versions()
    assert found["cpu"] == backends.processor()
    assert found["extension"] == {**backends.build_info(), "reason": backends.NOT_BUILT}
    assert found["remedies"] == backends.remedies()
    assert found["operators"] == [row._asdict() for row in backends.available()]
    assert found["policies"] == [policy._asdict() for policy in POLICIES]


def test_version_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["itm_kernels", "--version"]), pytest.raises(SystemExit) as done:
        __main__.main()
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == f"itm_kernels {itm_kernels.__version__}"


def test_a_reader_may_leave_early() -> None:
    command = [sys.executable, "-m", "itm_kernels", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()  # before anything is printed: importing takes a second
        assert running.stderr.read() == b""
    assert running.returncode == 0


def test_operators_of_the_table_are_those_defined() -> None:
    from itm_kernels.ops import _define

    chosen = {d.operator for d in _define.DEFINITIONS if d.runs_with is None}
    assert chosen == {*backends.OPERATORS, *backends.TOTALS}
    assert len(chosen) == len(backends.OPERATORS) + len(backends.TOTALS)
    others = {d.operator: d.runs_with for d in _define.DEFINITIONS if d.runs_with is not None}
    # Middle ranks and keys of rows run with ranks; cosines of rows of any norm, with those of unit
    # rows.
    assert others == {
        "middle_ranks": "ranks",
        "row_keys": "ranks",
        "unit_synthesis": "rbf_synthesis_logits",
    }
    assert set(others.values()) <= set(backends.OPERATORS)


def test_every_policy_names_the_code_that_decides() -> None:
    report = " ".join(__main__.info().split())
    assert len({policy.name for policy in POLICIES}) == len(POLICIES)
    for name, choice, reason, file, code in POLICIES:
        assert f"{name}: {choice} ({reason})" in report
        assert code in (ROOT / file).read_text(), f"{name}: no {code} in {file}"
    decided = {
        policy.code.split()[0] for policy in POLICIES if policy.file.endswith("_policies.py")
    }
    parts = (ROOT / "itm_kernels" / name for name in ("ops", "losses", "distributed"))
    modules = (path for part in parts for path in part.rglob("*.py"))
    used = {word for path in modules for word in re.findall(r"\w+", path.read_text())}
    assert decided - {"KEPT_BYTES"} <= used  # keeps_scores, which other policies call, reads it
    assert "keeps_scores" in used
