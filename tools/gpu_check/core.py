"""Check the values of every loss and operator at one size, before anything is timed."""

from tools.gpu_check import values
from tools.gpu_check.journal import Check, Setting


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step; the step `values` checks the other sizes."""
    return values.size_checks(
        "core", values.first_sizes(setting.tiny), values.FIRST_PRECISIONS, setting
    )
