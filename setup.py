"""Build the optional extension ``itm_kernels._C``. pyproject.toml holds all other metadata.

Environment variables:

- ``ITM_KERNELS_BUILD``: ``0`` builds no extension, ``1`` makes a failed build an error, and
  ``auto`` (default) builds it if possible and otherwise installs the pure Python package.
- ``ITM_KERNELS_CUDA``: the same for the CUDA kernels. They need a CUDA build of torch and the nvcc
  of that CUDA version, but no GPU.
- ``TORCH_CUDA_ARCH_LIST``: the architectures, instead of those in csrc/cuda/architectures.txt.
- ``ITM_KERNELS_LINEINFO=1``: include line information in the CUDA kernels, for profilers.
- ``ITM_KERNELS_PRECOMPILED=1``: compile the files of the CPU backend one by one, with torch's
  headers precompiled into 300 MB of the build folder: less work after a change of one file, but
  three times as much for all files as in one unit.
"""

import hashlib
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


def choice(variable: str, default: str = "auto") -> str:
    """Return the value of an environment variable, "0", "1" or "auto"."""
    value = os.environ.get(variable, default)
    if value not in ("0", "1", "auto"):
        sys.exit(f"setup.py: {variable} is {value!r}; set it to '0', '1' or 'auto'")
    return value


BUILD, CUDA = choice("ITM_KERNELS_BUILD"), choice("ITM_KERNELS_CUDA")
NAME = "itm_kernels._C"
LINE_INFO = choice("ITM_KERNELS_LINEINFO", "0") == "1"
PRECOMPILED = choice("ITM_KERNELS_PRECOMPILED", "0") == "1"
SANITIZED = "-fsanitize" in os.environ.get("CFLAGS", "")


def output(*command: str) -> str:
    """Return the output of a program, "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout + done.stderr


def why_no_cuda() -> str:
    """Set the environment variables that torch's build reads; return what is missing for CUDA."""
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
        # The nvcc on PATH may be a script outside of its toolkit: a dry run prints the folder.
        top = re.search(r"^#\$ _?TOP=(.*)$", output(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
        root = top[1].strip() if top else os.path.join(os.path.dirname(nvcc), "..")
        os.environ["CUDA_HOME"] = os.path.realpath(root)
    known = output(nvcc, "--list-gpu-arch").split()
    with open("csrc/cuda/architectures.txt") as shipped:
        fitting = [a for a in shipped.read().split() if f"compute_{a.replace('.', '')}" in known]
    # The driver compiles the PTX of the newest architecture for later GPUs.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(fitting) + "+PTX")
    return ""


def architectures(flags: list[str]) -> str:
    """Return the architectures of nvcc's flags in the format of TORCH_CUDA_ARCH_LIST."""
    found = re.findall(r"code=(sm|compute)_(\d+)(\d[a-z]?)", " ".join(flags))
    named = {kind: [f"{major}.{minor}" for of, major, minor in found if of == kind]
             for kind in ("sm", "compute")}  # fmt: skip
    return ",".join(a + ("+PTX" if a in named["compute"] else "") for a in named["sm"])


def extension() -> dict[str, Any]:
    """Return the arguments of setup() that build ``itm_kernels._C`` or report why they cannot."""
    base, torch_missing = build_ext, None
    no_cuda = why_no_cuda()  # first: torch reads the environment when it is imported
    if no_cuda and CUDA == "1":
        sys.exit(f"setup.py: error: the CUDA kernels cannot be built: {no_cuda}")
    try:
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension
    except ImportError as error:
        torch_missing = f"the build environment cannot import torch ({error})"

    class BuildOrWarn(base):
        """Build the extension or, if it is optional and the build fails, warn once."""

        def finalize_options(self) -> None:
            """Save the options, which a second build starts from."""
            self.given = dict(vars(self))
            super().finalize_options()

        def run(self) -> None:
            """Compile and link if the build environment can, without CUDA if that fails."""
            try:
                if torch_missing:
                    raise RuntimeError(torch_missing)
                try:
                    self.compile()
                except Exception as error:
                    if no_cuda or CUDA == "1":
                        raise
                    self.distribution.ext_modules = [without_cuda(error)]
                    vars(self).update(self.given)
                    self.finalize_options()
                    self.compile()
            except Exception as error:
                message = (
                    f"itm_kernels._C was not built: {error} (the compiler's messages are above). "
                    "The package works without it, in plain PyTorch. To build it, install torch "
                    "and a C++20 compiler, then run: "
                    "ITM_KERNELS_BUILD=1 pip install --no-build-isolation ."
                )
                if BUILD == "1":
                    sys.exit(f"setup.py: error: {message}")
                print(f"setup.py: WARNING: {message}", file=sys.stderr)
                with suppress(OSError):  # the result of an earlier build would be installed
                    os.remove(os.path.join(self.build_lib, self.get_ext_filename(NAME)))
                self.extensions = self.distribution.ext_modules = []
                wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
                if wheel:  # tagged py3-none-any, for every Python and machine
                    wheel.root_is_pure = True

        def compile(self) -> None:
            """Compile and link the extensions."""
            if not self.debug and not SANITIZED:
                for extension in self.extensions:
                    release(extension)
            super().run()

        def build_extension(self, extension: Extension) -> None:
            """Compile one extension, whose flags torch has completed by now."""
            if PRECOMPILED:
                precompile(self.compiler, extension, self.build_temp)
            else:
                merge(extension, self.build_temp)
            super().build_extension(extension)

    try:
        found = module(with_cuda=not no_cuda)
    except Exception as error:  # an architecture unknown to torch
        if no_cuda or CUDA == "1":
            raise
        found = without_cuda(error)
    return {"cmdclass": {"build_ext": BuildOrWarn}, "ext_modules": [found]}


def without_cuda(error: Exception) -> Extension:
    """Warn that the CUDA kernels are not built, and return the extension without them."""
    print(
        f"setup.py: WARNING: the CUDA kernels were not built: {error} (the compiler's messages are "
        "above). The extension is built without them. ITM_KERNELS_CUDA=1 makes this an error, "
        "ITM_KERNELS_CUDA=0 leaves them out.",
        file=sys.stderr,
    )
    return module(with_cuda=False)


def module(with_cuda: bool) -> Extension:
    """Return the extension with its sources and flags."""
    folders = ("csrc", "csrc/aten", "csrc/cpu", "csrc/cpu/simd")
    sources = [path for folder in folders for path in glob(f"{folder}/*.cpp")]
    # No -march=native: a wheel must also run on processors other than the one that built it.
    # With a sanitizer, -O3 would double the compile time.
    flags = ["-std=c++20", "-O1" if SANITIZED else "-O3", "-fopenmp"]
    flags += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror=return-type"]
    make, arguments = Extension, flags
    with suppress(ImportError):
        from torch.utils import cpp_extension

        make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    if with_cuda:
        # A binding is <op>_binding.cpp: <op>.cpp and <op>.cu would both compile to <op>.o.
        sources += glob("csrc/cuda/**/*.cu", recursive=True)
        sources += glob("csrc/cuda/**/*_binding.cpp", recursive=True)
        images = cpp_extension._get_cuda_arch_flags()
        flags += ["-DITM_WITH_CUDA", f"-DITM_CUDA_ARCHITECTURES={architectures(images)}"]
        nvcc = ["-std=c++20", "-O3", "--threads=2", *images, *["-lineinfo"] * LINE_INFO]
        arguments = {"cxx": flags, "nvcc": nvcc}
    return make(
        NAME,
        sorted(sources),
        include_dirs=[os.path.abspath("csrc")],  # ninja compiles in another folder
        depends=[
            path
            for ending in ("h", "inl", "cuh")
            for path in glob(f"csrc/**/*.{ending}", recursive=True)
        ],
        extra_compile_args=arguments,
        extra_link_args=["-fopenmp"],
    )


def merge(module: Extension, folder: str) -> None:
    """Include the files of the CPU backend in one unit: torch's headers take 5 s per unit.

    The loops of each instruction set are units of their own, without torch's headers. A test checks
    that every file includes what it uses.
    """
    backend = [path for path in module.sources if re.match(r"csrc/((aten|cpu)/)?\w+\.cpp", path)]
    os.makedirs(folder, exist_ok=True)
    unit = os.path.join(folder, "cpu.cpp")
    text = "".join(f'#include "{path.removeprefix("csrc/")}"\n' for path in backend)
    if not os.path.exists(unit) or open(unit).read() != text:
        with open(unit, "w") as file:
            file.write(text)
    module.sources = [path for path in module.sources if path not in backend] + [unit]
    module.depends += backend


PRECOMPILED_HEADERS = ("ATen/core/Tensor.h", "ATen/Dispatch.h", "torch/library.h")


def precompile(compiler: Any, module: Extension, folder: str) -> None:
    """Precompile the slow headers, which nearly every file includes.

    Without support by the compiler, nothing changes. A test checks that every file includes those
    that it uses.
    """
    import torch
    from torch.utils import cpp_extension

    lines = [f"#include <{header}>\n" for header in PRECOMPILED_HEADERS]
    flags = module.extra_compile_args
    flags = flags["cxx"] if isinstance(flags, dict) else flags
    command = [cpp_extension.get_cxx_compiler(), *compiler.compiler_so[1:], *flags]
    for path in [*compiler.include_dirs, *module.include_dirs]:
        command += ["-isystem", path]  # without their warnings
    # gcc checks its own version and flags, but not whether the headers have changed.
    versions = torch.__version__, torch.version.git_version, output(command[0], "--version")
    key = hashlib.sha256(repr((lines, command, versions)).encode()).hexdigest()[:16]
    header = os.path.abspath(f"{folder}/precompiled/{key}.h")
    if not os.path.exists(f"{header}.gch"):
        shutil.rmtree(os.path.dirname(header), ignore_errors=True)
        os.makedirs(os.path.dirname(header))
        with open(header, "w") as file:
            file.writelines(lines)
        part = f"{header}.part"
        if not subprocess.run([*command, "-x", "c++-header", header, "-o", part]).returncode:
            os.replace(part, f"{header}.gch")
    flags += ["-include", header]


def release(module: Extension) -> None:
    """Build without assertions, debug information (28 times the size) and symbols.

    Python's own flags and CFLAGS may enable debug information. ``build_ext --debug`` keeps it.
    """
    flags = module.extra_compile_args
    flags = flags["cxx"] if isinstance(flags, dict) else flags
    if "-g0" not in flags:
        flags += ["-DNDEBUG", "-g0"]
        module.extra_link_args += ["-Wl,-s"] if sys.platform == "linux" else []


# setuptools 77 introduced SPDX licence expressions. In pyproject.toml, an expression is an error in
# earlier versions, and the older form is deprecated since.
licence = "license_expression" if int(setuptools.__version__.split(".")[0]) >= 77 else "license"
setup(**{licence: "Apache-2.0"}, **({} if BUILD == "0" else extension()))
