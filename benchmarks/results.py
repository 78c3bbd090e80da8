"""One JSON file per machine: what was measured, with what, and the machine without its name."""

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
# Each of the three that compute chooses its own instructions: ATen with our loops, MKL's products,
# oneDNN's.
CHOICES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
OUTPUT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}


def cpu_model() -> str:
    """Return the processor's model as its vendor writes it, with its family where that says little.

    A virtual machine may call generations that differ in speed by one name, "AMD EPYC".
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
    """Return what decides the speed of this machine; never its host name."""
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
    """Return the file's name of a machine: model family and cores, or the GPU.

    A run that was told which instructions to use has a file of its own.
    """
    if facts["device"] == "cuda":
        return f"cuda-{_slug(facts['gpu'])}"
    model = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*|\d+-Core", "", facts["cpu"])
    chosen = f"-{_slug(facts['instruction_set'])}" if facts.get("chosen") else ""
    return f"cpu-{_slug(model)}-{facts['cores']}core{chosen}"


def commit() -> str:
    """Return the commit that was last measured with, marked if more than results has changed."""

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
    """The file, written after every row, so that an interrupted run can go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": {}, "versions": {}, "limits": {}, "rows": {}}
        if path.exists():
            self.content.update(json.loads(path.read_text(encoding="utf-8")))

    def begin(self, facts: dict[str, Any], versions: dict[str, str], resume: bool) -> None:
        """Keep what is there if it was measured on this machine with these versions."""
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
        """Add a record and write the file, whole or not at all."""
        self.section(section)[key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(rounded(self.content), indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)


def rounded(value: Any) -> Any:
    """Return the same with floats of four significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
