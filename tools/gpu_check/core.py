"""The values that matter most: every loss and operator at one size, before anything is timed."""

from tools.gpu_check import values
from tools.gpu_check.journal import Check, Setting


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step; those of `values` are the rest."""
    return values.of_sizes("core", values.first(setting.tiny), values.FIRST_PRECISIONS, setting)
