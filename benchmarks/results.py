"""One JSON file per machine: measurements, versions and machine model, without the host name."""

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from itm_kernels import backends

FOLDER = Path(__file__).parent / "results"
# ATen (with our loops), MKL and oneDNN each choose their own instructions.
CHOICES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
OUTPUT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}


def cpu_model() -> str:
    """Return the vendor's name of the processor, with its family if the name has no number.

    A virtual machine may use one name, "AMD EPYC", for generations that differ in speed.
    """
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "model name" in facts and "cpu family" in facts and not re.search(r"\d", name):
        name += f" family {facts['cpu family']} model {facts.get('model', '?')}"
    return name


def machine(device: str, threads: int) -> dict[str, Any]:
    """Return the facts that determine the speed of this machine, without its host name."""
    facts: dict[str, Any] = {
        "device": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "extension": {k: v for k, v in backends.build_info().items() if k != "operators"},
    }
    chosen = {name: os.environ[name] for name in CHOICES if name in os.environ}
    if device == "cpu" and chosen:
        facts["chosen"] = chosen
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_memory"] = properties.total_memory
    return facts


def name(facts: dict[str, Any]) -> str:
    """Return the file name of a machine: processor model and cores, or the GPU.

    A run with a chosen instruction set has its own file.
    """
    if facts["device"] == "cuda":
        return f"cuda-{_slug(facts['gpu'])}"
    model = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*|\d+-Core", "", facts["cpu"])
    chosen = f"-{_slug(facts['instruction_set'])}" if facts.get("chosen") else ""
    return f"cpu-{_slug(model)}-{facts['cores']}core{chosen}"


def commit() -> str:
    """Return the current commit, marked "-dirty" if files other than results have changed.

    ITM_KERNELS_COMMIT names it in a copy of the files that has no history of its own.
    """
    if "ITM_KERNELS_COMMIT" in os.environ:
        return os.environ["ITM_KERNELS_COMMIT"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=FOLDER.parent.parent, **OUTPUT)
        return str(done.stdout).strip()

    documents = ":!README.md", ":!docs/performance.md"
    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", *documents)
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except OSError:
        return ""


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9.]+", text.lower()))


class Results:
    """The results file. It is written after every row, so that an interrupted run can continue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": {}, "versions": {}, "limits": {}, "rows": {}}
        if path.exists():
            self.content.update(json.loads(path.read_text(encoding="utf-8")))

    def begin(self, facts: dict[str, Any], versions: dict[str, str], resume: bool) -> None:
        """Keep the stored results if they were measured on this machine with these versions."""
        if self.content["machine"] != facts or self.content["versions"] != versions:
            self.content = {}
        elif not resume:
            self.content |= {"limits": {}, "rows": {}}
        head = {"machine": facts, "versions": versions, "commit": commit()}
        self.content = head | {"limits": {}, "rows": {}} | self.content | head

    def section(self, section: str) -> dict[str, Any]:
        """Return one part of the file: rows, limits, memory, scaling, large."""
        return self.content.setdefault(section, {})

    def add(self, section: str, key: str, record: Any) -> None:
        """Add a record and write the file atomically."""
        self.section(section)[key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(rounded(self.content), indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)


def rounded(value: Any) -> Any:
    """Return a copy with floats rounded to four significant digits; the others are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
