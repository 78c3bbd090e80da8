"""Builds the optional extension ``itm_kernels._C``; pyproject.toml says everything else.

``ITM_KERNELS_BUILD`` chooses: ``0`` builds no extension, ``1`` makes a failed build an error, and
``auto`` (or unset) builds it where possible and otherwise installs the pure Python package.
``ITM_KERNELS_CUDA`` chooses the same for the CUDA kernels in it, which need a CUDA build of torch
and the nvcc of that version, and no GPU. ``TORCH_CUDA_ARCH_LIST`` names the architectures.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from glob import glob
from typing import Any

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def choice(variable: str) -> str:
    """Return what an environment variable chooses."""
    value = os.environ.get(variable, "auto")
    if value not in ("0", "1", "auto"):
        sys.exit(f"setup.py: {variable} is {value!r}; set it to '0', '1' or 'auto'")
    return value


BUILD, CUDA = choice("ITM_KERNELS_BUILD"), choice("ITM_KERNELS_CUDA")
SANITIZED = "-fsanitize" in os.environ.get("CFLAGS", "")
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # those of them that nvcc knows


def output(*command: str) -> str:
    """Return what a program prints, "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout + done.stderr


def why_no_cuda() -> str:
    """Set what torch's build reads of the environment; return what is missing for CUDA."""
    if CUDA == "0":
        return "ITM_KERNELS_CUDA is 0"
    try:
        import torch
    except ImportError as error:
        return f"the build environment cannot import torch ({error})"
    wanted = torch.version.cuda
    if wanted is None:
        return f"torch {torch.__version__} is built without CUDA"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return f"there is no nvcc in {home or 'PATH'}; set CUDA_HOME to a CUDA {wanted} toolkit"
    found = re.search(r"release (\d+)\.", output(nvcc, "--version"))
    if not found or found[1] != wanted.split(".")[0]:
        return f"torch is built with CUDA {wanted}, and {nvcc} is of release {found and found[1]}"
    if not home:
        # The nvcc on PATH may be a script elsewhere; it knows where its toolkit is.
        top = re.search(r"^#\$ _?TOP=(.*)$", output(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
        root = top[1].strip() if top else os.path.join(os.path.dirname(nvcc), "..")
        os.environ["CUDA_HOME"] = os.path.realpath(root)
    known = output(nvcc, "--list-gpu-arch").split()
    fitting = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in known]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(fitting))
    return ""


def extension() -> dict[str, Any]:
    """Return what setup() needs to build ``itm_kernels._C`` or to say why it cannot."""
    base, make_extension, torch_missing = build_ext, Extension, None
    no_cuda = why_no_cuda()  # first: torch reads the environment when it is imported
    if no_cuda and CUDA == "1":
        sys.exit(f"setup.py: error: the CUDA kernels cannot be built: {no_cuda}")
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

        base, make_extension = BuildExtension, CppExtension if no_cuda else CUDAExtension
    except ImportError as error:
        torch_missing = f"the build environment cannot import torch ({error})"

    class BuildOrWarn(base):
        """Build the extension or, where it is optional, say once why it was left out."""

        def run(self) -> None:
            """Compile and link, unless the build environment cannot."""
            if not self.debug and not SANITIZED:
                release(module)
            try:
                if torch_missing:
                    raise RuntimeError(torch_missing)
                super().run()
            except Exception as error:
                message = (
                    f"itm_kernels._C was not built: {error} (a compiler's own words stand "
                    "above). The package works without it, in plain PyTorch. To build it, install "
                    "torch and a C++20 compiler, then: "
                    "ITM_KERNELS_BUILD=1 pip install --no-build-isolation ."
                )
                if BUILD == "1":
                    sys.exit(f"setup.py: error: {message}")
                print(f"setup.py: WARNING: {message}", file=sys.stderr)
                with suppress(OSError):  # what an earlier build left there would be installed
                    os.remove(os.path.join(self.build_lib, self.get_ext_filename(module.name)))
                self.extensions = self.distribution.ext_modules = []
                wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
                if wheel:  # for every Python and every machine: py3-none-any
                    wheel.root_is_pure = True

    sources = glob("csrc/binding/*.cpp") + glob("csrc/cpu/*.cpp")
    # No -march=native: a wheel has to run on other processors than the one that built it.
    # With a sanitizer, half the time of compiling is -O3.
    flags = ["-std=c++20", "-O1" if SANITIZED else "-O3", "-fopenmp"]
    flags += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror=return-type"]
    if not no_cuda:
        sources += glob("csrc/cuda/*.cu") + glob("csrc/cuda/binding/*.cpp")
        flags += ["-DITM_WITH_CUDA"]
    module = make_extension(
        "itm_kernels._C",
        ["csrc/module.cpp", *sorted(sources)],
        include_dirs=[os.path.abspath("csrc")],  # ninja compiles in another folder
        depends=[
            path
            for ending in ("h", "inl", "cuh")
            for path in glob(f"csrc/**/*.{ending}", recursive=True)
        ],
        extra_compile_args=flags if no_cuda else {"cxx": flags, "nvcc": ["-std=c++20", "-O3"]},
        extra_link_args=["-fopenmp"],
    )
    return {"cmdclass": {"build_ext": BuildOrWarn}, "ext_modules": [module]}


def release(module: Extension) -> None:
    """Leave out assertions, debug information (28 times the size) and symbols.

    Python's own flags ask for debug information, and CFLAGS may. ``build_ext --debug`` keeps it.
    """
    flags = module.extra_compile_args
    flags = flags["cxx"] if isinstance(flags, dict) else flags
    if "-g0" not in flags:
        flags += ["-DNDEBUG", "-g0"]
        module.extra_link_args += ["-Wl,-s"] if sys.platform == "linux" else []


# An SPDX expression from the version of setuptools that knows them. In pyproject.toml, one form is
# an error before that version, and the other is deprecated after it.
licence = "license_expression" if int(setuptools.__version__.split(".")[0]) >= 77 else "license"
setup(**{licence: "Apache-2.0"}, **({} if BUILD == "0" else extension()))
