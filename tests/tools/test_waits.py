"""Waits found in machine code: loops, loads in flight together, checks."""

import pytest

from tools.compile_report import waits

TOGETHER = """
LDG.E R9, desc[UR6][R2.64]
.L_x_1:
@P0 LDG.E R4, desc[UR6][R2.64]
LDG.E.64 R6, desc[UR6][R2.64+0x80]
IADD3 R2, P1, R2, UR4, RZ
FADD R8, R8, R4
DADD R10, R10, R6
@P0 BRA `(.L_x_1)
STG.E desc[UR6][R12.64], R8
EXIT
"""
# Each is used before the next is issued; the second's address is what the first has read.
IN_TURN = TOGETHER.replace("IADD3 R2, P1, R2, UR4, RZ", "LDG.E R5, desc[UR6][R4.64]").replace(
    "R8, R4", "R8, R5"
)
SINGLE = TOGETHER.replace("LDG.E.64 R6, desc[UR6][R2.64+0x80]", "NOP")
# Two ways to load, of which one loads a single number, are used where they meet.
TWO_WAYS = """
.L_x_1:
@!P1 BRA `(.L_x_2)
LDG.E R4, desc[UR6][R2.64]
BRA `(.L_x_3)
.L_x_2:
LDG.E R4, desc[UR6][R2.64]
LDG.E R5, desc[UR6][R2.64+0x80]
.L_x_3:
FADD R8, R4, R5
@P0 BRA `(.L_x_1)
EXIT
"""
# A jump backward from code that lies behind the kernel's end is no loop.
OUT_OF_LINE = """
BRA `(.L_x_2)
.L_x_1:
LDG.E R4, desc[UR6][R2.64]
FADD R8, R4, R5
EXIT
.L_x_2:
BRA `(.L_x_1)
"""
NESTED = """
.L_x_1:
LDG.E R4, desc[UR6][R2.64]
LDG.E R5, desc[UR6][R2.64]
FADD R8, R4, R5
.L_x_2:
LDG.E R6, desc[UR6][R2.64]
FADD R8, R8, R6
@P0 BRA `(.L_x_2)
@P1 BRA `(.L_x_1)
EXIT
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TOGETHER, [[2]]),
        (IN_TURN, [[2, 1]]),
        (SINGLE, [[1]]),
        (TWO_WAYS, [[1]]),
        (OUT_OF_LINE, []),
        (NESTED, [[2], [1]]),
    ],
)
def test_loads_that_loops_wait_for(text: str, found: list[list[int]]) -> None:
    assert waits.of_loops(text.split("\n")[1:-1]) == found


@pytest.mark.parametrize("text", [SINGLE, IN_TURN, TWO_WAYS, NESTED, OUT_OF_LINE])
def test_a_loop_that_waits_for_a_single_load_is_an_error(text: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"score_gradient_kernel: a loop waits for a single load"
    ):
        waits.check("score_gradient_kernel", text.split("\n")[1:-1])


def test_a_loop_that_waits_for_several_loads_passes() -> None:
    assert waits.check("score_gradient_kernel", TOGETHER.split("\n")[1:-1]).endswith("[[2]]")


def test_wide_loads_fill_several_registers() -> None:
    assert waits.registers("@!P2 LDG.E.128.CONSTANT R4, desc[UR6][R2.64]") == {4, 5, 6, 7}
    assert waits.registers("LDS R4, [R2]") == set()
