"""Assumed rates of the GPUs, with their sources, to be replaced here by measured rates.

"Measured" was seen on an H200 by `tools.gpu_check` (torch 2.11, driver 580.159). "Budget" is the
project's collection of published figures for an H200, "data sheet" is the vendor's, and "estimate"
has not been measured.
"""

from typing import NamedTuple


class Machine(NamedTuple):
    """The rates of a GPU."""

    name: str
    products: dict[str, float]  # FLOP/s by kind, at a large inner dimension
    instructions: float  # lane instructions per second
    exponentials: float  # per second
    hbm: float  # bytes per second, copies
    l2: float  # bytes per second
    memory: float  # bytes


_PRODUCTS = {"half": 807e12, "tf32": 418e12, "fp32": 51e12, "fp64": 60e12}
HALF_DEPTH = 58  # inner dimension at half rate for "half"; proportionally smaller for other kinds
_LANES, _SPECIAL = 33.5e12, 33.5e12 / 8
_L2 = 7.5e12

H200 = Machine("H200", _PRODUCTS, _LANES, _SPECIAL, 4.2e12, _L2, 141e9)
H100 = Machine("H100", _PRODUCTS, _LANES, _SPECIAL, 3.0e12, _L2, 80e9)
MACHINES = (H200, H100)

L2_BYTES = 50e6
PROCESSORS = 132
LAUNCH = 3e-6
# Rates of small batches in a CUDA graph: a kernel node that waits for its predecessor, with the
# lowest and the highest published value, and a node with programmatic dependent launch; the latency
# of an L2 load; the bandwidth of a multiprocessor from the L2 and from shared memory, and the
# latency of shared memory.
GRAPH_NODE, DEPENDENT_NODE = 1.0e-6, 0.5e-6
GRAPH_NODES = (0.6e-6, 1.7e-6)
L2_TRIP, TRIPS = 0.145e-6, 2  # every launch has two trips: a read and a write
CLOCK = 1.98e9
L2_OF_A_PROCESSOR, SHARED_BYTES = 64.0, 128.0  # bytes per clock
SHARED_CLOCKS = 30
# Operands smaller than this are assumed to stay in the L2 (estimate: a third of it).
RESIDENT = L2_BYTES / 3

# Fraction of the tensor-core rate that a tile allows: shared memory supplies 128 bytes per clock
# (budget).
CEILINGS = {(64, 64): 0.50, (64, 128): 0.57, (128, 128): 0.80, (128, 256): 1.0}
# tl.dot on fp32 units with 64 x 64 tiles from shared memory (estimate), and on fp64 units: half of
# the tensor-core rate.
IEEE_CEILING = 0.5


def rate_of(machine: Machine, kind: str, depth: int) -> float:
    """Return the FLOP/s of products with an inner dimension of `depth`."""
    peak = machine.products[kind]
    half = HALF_DEPTH * peak / machine.products["half"]
    return peak * depth / (depth + half)


def ceiling_of(kind: str, rows: int, columns: int, warps: int = 8) -> float:
    """Return the fraction of that rate that a tile allows."""
    if kind not in ("fp32", "fp64") and warps == 16 and (rows, columns) == (128, 128):
        return 0.67  # instructions of 64 columns (budget)
    if kind in ("fp32", "fp64"):
        return IEEE_CEILING
    side, other = sorted((rows, columns))
    fitting = [share for (a, b), share in CEILINGS.items() if a <= side and b <= other]
    return max(fitting, default=0.25)


STATED = (
    (
        "bf16, fp16 products",
        "807 K / (K + 58) TFLOP/s",
        "measured: 801 (fp16 772) at N = K = 8,192, 763 at N = 4,096 and K = 1,024",
    ),
    ("tf32 products", "418 TFLOP/s at large K", "measured: 416 at N = K = 8,192"),
    ("fp32 products", "51 TFLOP/s at large K", "measured, at K = 1,024 and 8,192"),
    ("fp64 products", "60 TFLOP/s at large K", "estimate: nine tenths of the data sheet's 67"),
    ("tl.dot on fp32 and fp64", "half of these", "estimate"),
    ("tiles 64x64, 128x64, 128x128, 128x256", "50, 57, 80, 100 %", "budget: shared memory"),
    ("tiles 128x128 in 16 warps", "67 %", "budget: narrower instructions"),
    ("fp32 instructions", "33.5 T lanes/s", "budget: 132 x 128 x 1.98 GHz"),
    ("exponentials, logarithms, roots", "4.2 T/s", "data sheet: 16 per clock and processor"),
    ("HBM, H200", "4.2 TB/s", "measured: copies"),
    ("HBM, H100", "3.0 TB/s", "estimate: nine tenths of the data sheet's 3.35"),
    ("L2", "7.5 TB/s", "estimate: what 128 x 128 tiles at 480 TFLOP/s read"),
    ("L2, size", "50 MB", "data sheet"),
    (
        "gap between launches",
        "3 us",
        "estimate: the host keeps the queue full, or a CUDA graph; 8-10 us per launch in Python "
        "and 5 us in ATen are not counted",
    ),
)

OF_SMALL_BATCHES = (
    (
        "a kernel node of a CUDA graph",
        "1 us",
        "estimate, between 0.58 us for empty kernels on an RTX 5070 Ti (ahrefs/ocannl, issue 488) "
        "and 1.7 us on a B300 (notes of a serving project); x + y of 1,024 elements took 1.1 to "
        "1.3 us in total (pytorch/pytorch, issue 161104)",
    ),
    (
        "the same with programmatic dependent launch",
        "0.5 us",
        "estimate: scheduling and the start of its blocks overlap the end of the previous node",
    ),
    ("a dependent load from the L2", "0.145 us", "budget: 45 of them take 6 to 7 us"),
    ("every launch", "2 such loads", "estimate: one to read, one to write"),
    ("processor clock", "1.98 GHz", "budget"),
    ("L2 to one processor", "64 B per clock", "estimate: half the rate of shared memory"),
    ("shared memory of a processor", "128 B per clock, after 30 clocks", "data sheet; estimate"),
)
