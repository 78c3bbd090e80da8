"""Builds the optional extension ``itm_kernels._C``; pyproject.toml says everything else.

``ITM_KERNELS_BUILD`` chooses: ``0`` builds no extension, ``1`` makes a failed build an error, and
``auto`` (or unset) builds it where possible and otherwise installs the pure Python package.
"""

import os
import sys
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = os.environ.get("ITM_KERNELS_BUILD", "auto")
if BUILD not in ("0", "1", "auto"):
    sys.exit(f"setup.py: ITM_KERNELS_BUILD is {BUILD!r}; set it to '0', '1' or 'auto'")


def extension() -> dict[str, Any]:
    """Return what setup() needs to build ``itm_kernels._C`` or to say why it cannot."""
    base, make_extension, torch_missing = build_ext, Extension, None
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        base, make_extension = BuildExtension, CppExtension
    except ImportError as error:
        torch_missing = f"the build environment cannot import torch ({error})"

    class BuildOrWarn(base):
        """Build the extension or, where it is optional, say once why it was left out."""

        def run(self) -> None:
            """Compile and link, unless the build environment cannot."""
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
                self.extensions = []

    module = make_extension(
        "itm_kernels._C",
        ["csrc/module.cpp", *sorted(glob("csrc/binding/*.cpp") + glob("csrc/cpu/*.cpp"))],
        include_dirs=[os.path.abspath("csrc")],  # ninja compiles in another folder
        depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inl", recursive=True),
        # No -march=native: a wheel has to run on other processors than the one that built it.
        extra_compile_args=["-std=c++20", "-O3", "-fopenmp"]
        + ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror=return-type"],
        extra_link_args=["-fopenmp"],
    )
    return {"cmdclass": {"build_ext": BuildOrWarn}, "ext_modules": [module]}


setup(**({} if BUILD == "0" else extension()))
