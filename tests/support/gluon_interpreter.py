"""An interpreter of Gluon kernels in NumPy with worst-case asynchronous timing.

Gluon has no interpreter. This one runs the Python functions of a kernel on NumPy arrays and ignores
layouts. Partitions run in turns, in a random order (`gluon_machine.py`). A TMA copy fills its
buffer with NaN when it is issued and with the data at a random later time; a product reads its
operands either when it is issued or when it is waited for. A stage that is overwritten too early or
read too soon thus gives NaN. A deadlock of all partitions, a load or store outside a tensor, and a
second store to an element are errors.
"""

from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from gluon_machine import Barrier, Machine

DTYPES = {"int32": np.int32, "int64": np.int64, "float32": np.float32}


class Array(np.ndarray):
    """A tensor in registers, with value semantics: `a += b` creates a new array."""

    __iadd__, __imul__, __ior__ = np.ndarray.__add__, np.ndarray.__mul__, np.ndarray.__or__

    @property
    def type(self) -> SimpleNamespace:
        return SimpleNamespace(layout=None)

    def to(self, dtype: type, bitcast: bool = False) -> "Array":
        return self.view(dtype) if bitcast else self.astype(dtype)

    def expand_dims(self, axis: int) -> "Array":
        return np.expand_dims(self, axis)

    def permute(self, axes: Sequence[int]) -> "Array":
        return self.transpose(axes)

    def split(self) -> tuple["Array", "Array"]:
        assert self.shape[-1] == 2
        return self[..., 0], self[..., 1]


def array(values: Any) -> Array:
    return np.asarray(values).view(Array)


class Shared:
    """A buffer in shared memory, or a view of a part of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def index(self, at: int) -> Any:
        part = self.data[at]
        return part[0] if part.dtype == object else Shared(part)

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return Shared(self.data[(slice(None),) * dim + (slice(start, start + length),)])

    def permute(self, axes: Sequence[int]) -> "Shared":
        return Shared(self.data.transpose(axes))

    def load(self, layout: None) -> Array:
        return array(self.data.copy())

    def store(self, values: Array) -> None:
        self.data[...] = values


class Pointer:
    """A tensor in global memory with offsets into it."""

    def __init__(self, data: np.ndarray, written: np.ndarray, at: Any = 0) -> None:
        self.data, self.written, self.at = data, written, at

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.data, self.written, self.at + offset)

    def inside(self, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        at, mask = np.broadcast_arrays(self.at, mask)
        assert np.all((at >= 0) & (at < self.data.size) | ~mask), "outside the tensor"
        return at, mask


ASSEMBLY = {"set.eq.f32.f32 $0, $1, $2;": np.equal, "ex2.approx.ftz.f32 $0, $1;": np.exp2}


class Interpreter:
    """Gluon's language for one launch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.program = self.programs = 0
        self.machine = Machine(seed)
        for name, dtype in DTYPES.items():
            setattr(self, name, dtype)
        for name in ("SliceLayout", "BlockedLayout", "SwizzledSharedLayout"):
            setattr(self, name, lambda *_: None)

    # -- the module `gl` -------------------------------------------------------------------------

    NVMMADistributedLayout = staticmethod(lambda **_: None)
    constexpr = None
    cdiv = staticmethod(lambda a, b: -(-a // b))
    static_range = range
    minimum = staticmethod(np.minimum)
    where = staticmethod(lambda a, b, c: array(np.where(a, b, c)))
    log = staticmethod(np.log)
    abs = staticmethod(np.abs)
    max = staticmethod(lambda a, axis: array(np.fmax.reduce(a, axis)))  # ignores NaN, as a GPU does
    min = staticmethod(lambda a, axis: array(np.fmin.reduce(a, axis)))
    sum = staticmethod(lambda a, axis: array(np.sum(a, axis)))
    broadcast = staticmethod(lambda a, b: tuple(map(array, np.broadcast_arrays(a, b))))
    join = staticmethod(lambda a, b: array(np.stack((a, b), -1)))
    convert_layout = staticmethod(lambda value, layout, assert_trivial=False: value)
    cast = staticmethod(lambda value, dtype: dtype(value))

    def program_id(self, axis: int) -> int:
        return self.program

    def num_programs(self, axis: int) -> int:
        return self.programs

    def arange(self, start: int, end: int, layout: None) -> Array:
        return array(np.arange(start, end, dtype=np.int32))

    def zeros(self, shape: Sequence[int], dtype: type, layout: None) -> Array:
        return array(np.zeros(shape, dtype))

    def maximum(self, a: Any, b: Any, propagate_nan: object = None) -> Array:
        # np.maximum propagates NaN; a GPU does not without `propagate_nan`.
        return array(np.maximum(a, b) if propagate_nan is not None else np.fmax(a, b))

    def reduce(self, values: Array, axis: int, combine: Callable[..., Any]) -> Array:
        found = values.take(0, axis)
        for place in range(1, values.shape[axis]):
            found = combine(found, values.take(place, axis))
        return array(found)

    def inline_asm_elementwise(self, asm: str, _: str, values: Sequence[Any], **__: Any) -> Array:
        return array(ASSEMBLY[asm](*values).astype(np.float32))

    def load(self, pointer: Pointer, mask: Any = True) -> Array:
        at, mask = pointer.inside(mask)
        return array(pointer.data[np.where(mask, at, 0)])

    def store(self, pointer: Pointer, values: Any, mask: Any = True) -> None:
        at, mask = pointer.inside(mask)
        at, values = at[mask], np.broadcast_to(values, at.shape)[mask]
        assert not pointer.written[at].any(), "stored twice"
        pointer.written[at] = True
        pointer.data[at] = values

    def allocate_shared_memory(self, dtype: type, shape: Sequence[int], layout: object) -> Shared:
        if layout == "barriers":
            return Shared(np.array([[Barrier()] for _ in range(shape[0])], dtype=object))
        return Shared(np.full(shape, np.nan if dtype == np.float32 else 1 << 30, dtype))

    def warp_specialize(self, partitions: Any, warps: Sequence[int], registers: Any) -> None:
        assert len(partitions) == len(warps) + 1
        self.machine.together(partitions)

    # -- asynchronous operations -----------------------------------------------------------------

    MBarrierLayout = staticmethod(lambda: "barriers")

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.count = barrier.pending = count

    def expect(self, barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        self.arrive(barrier)

    def arrive(self, barrier: Barrier, pred: Any = True) -> None:
        if pred:
            barrier.pending -= 1
            barrier.settle()
            self.machine.wait()

    def wait(self, barrier: Barrier, phase: int, pred: Any = True) -> None:
        if pred:
            self.machine.wait(lambda: barrier.phase != phase)

    def async_copy_global_to_shared(
        self, source: SimpleNamespace, at: Sequence[int], barrier: Barrier, target: Shared
    ) -> None:
        target.data[...] = np.nan
        rows, columns = target.data.shape
        box = np.zeros((rows, columns), np.float32)  # zeros outside the tensor
        part = source.data[at[0] : at[0] + rows, at[1] : at[1] + columns]
        box[: part.shape[0], : part.shape[1]] = part

        def arrive() -> None:
            target.data[...] = box
            barrier.bytes -= 2 * box.size  # all operands have 16 bits
            barrier.settle()

        self.machine.copies.append(arrive)
        self.machine.wait()

    def warpgroup_mma(self, a: Shared, b: Shared, scores: Any, is_async: bool) -> Any:
        before = scores() if callable(scores) else scores
        if self.machine.random.random() < 0.5:
            return Product(lambda: before + a.data @ b.data)
        now = before + a.data @ b.data
        return Product(lambda: now)

    def warpgroup_mma_wait(self, outstanding: int, deps: Sequence["Product"]) -> Any:
        self.machine.wait()
        return deps[0] if outstanding else deps[0]()


class Product:
    """An asynchronous product and the ones before it, computed when first read."""

    def __init__(self, compute: Callable[[], np.ndarray]) -> None:
        self.compute, self.found = compute, None

    def __call__(self) -> Array:
        if self.found is None:
            self.found = array(self.compute())
        return self.found


class Kernel:
    """A Gluon kernel, launched as `kernel[grid](**arguments)`."""

    def __init__(self, kernel: Any, seed: int) -> None:
        self.kernel, self.seed = kernel, seed

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda **arguments: self.launch(grid[0], arguments)

    def launch(self, programs: int, arguments: dict[str, Any]) -> None:
        arguments = {name: value for name, value in arguments.items() if name not in OPTIONS}
        tensors: dict[int, Pointer] = {}
        given = {name: self.given(value, tensors) for name, value in arguments.items()}
        for program in range(programs):
            gl = Interpreter(self.seed + program)
            gl.program, gl.programs = program, programs
            translated(self.kernel, gl, {})(**given)

    def given(self, value: Any, tensors: dict[int, Pointer]) -> Any:
        if isinstance(value, Tensor) and value.element_size() == 2:
            return None  # a placeholder for ids that are not read
        if isinstance(value, Tensor):
            if value.data_ptr() not in tensors:
                data = value.numpy().reshape(-1)
                tensors[value.data_ptr()] = Pointer(data, np.zeros(data.size, bool))
            return tensors[value.data_ptr()]
        if hasattr(value, "block_shape"):
            data = value.base.float().numpy()
            block = SimpleNamespace(nbytes=2 * value.block_shape[0] * value.block_shape[1])
            return SimpleNamespace(data=data, dtype=np.float32, layout=None, block_type=block)
        return value


OPTIONS = ("num_warps", "maxnreg")


def translated(thing: Any, gl: Interpreter, known: dict[int, Any]) -> Any:
    """Translate a Gluon function, or an object that it uses, to Python on the interpreter."""
    if id(thing) in known:
        return known[id(thing)]
    function = getattr(thing, "fn", None)
    if isinstance(function, FunctionType):
        names: dict[str, Any] = {}
        copy = FunctionType(function.__code__, names, thing.__name__, function.__defaults__)
        known[id(thing)] = copy
        for name, value in function.__globals__.items():
            if name in ("gl", "mbarrier", "tma"):
                names[name] = gl
            elif name.startswith("warpgroup_mma"):
                names[name] = getattr(gl, name)
            else:
                names[name] = translated(value, gl, known)
        return copy
    if type(thing).__name__ == "constexpr" and isinstance(thing.value, int | float):
        return thing.value
    return thing
