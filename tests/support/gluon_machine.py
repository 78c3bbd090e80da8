"""Run the partitions of an interpreted Gluon program as threads that alternate at random."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Barrier:
    """An mbarrier: a phase completes after all arrivals and all bytes."""

    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.phase = 0

    def settle(self) -> None:
        assert self.pending >= 0, "more arrivals than the barrier counts"
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase ^ 1, self.count


class Machine:
    """The scheduler of one program: its partitions and the copies in flight."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.turns: list[threading.Semaphore] = []
        self.ready: dict[int, Callable[[], bool]] = {}
        self.running = 0
        self.copies: list[Callable[[], None]] = []
        self.error: BaseException | None = None

    def wait(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Yield to other partitions until this one is ready and scheduled."""
        me = self.running
        self.ready[me] = ready
        self.choose()
        if self.running != me:
            self.turns[me].acquire()
        if self.error is not None:
            raise self.error
        self.ready[me] = lambda: True

    def choose(self) -> None:
        """Complete copies at random and schedule a partition that is ready."""
        before = self.running
        while self.ready:
            if self.copies and self.random.random() < 0.3:
                self.copies.pop(self.random.randrange(len(self.copies)))()
            able = [each for each, ready in self.ready.items() if ready()]
            if able:
                self.running = self.random.choice(able)
                if self.running != before:
                    self.turns[self.running].release()
                return
            if not self.copies:
                raise RuntimeError("deadlock: every partition waits")
            self.copies.pop(self.random.randrange(len(self.copies)))()

    def together(self, partitions: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Run all partitions until they end."""

        def run(me: int) -> None:
            function, arguments = partitions[me]
            self.turns[me].acquire()
            try:
                with np.errstate(all="ignore"):
                    if self.error is None:
                        function(*arguments)
                del self.ready[me]
                self.choose()
            except BaseException as error:  # whatever it is, the other partitions must stop
                self.error = self.error or error
                for turn in self.turns:
                    turn.release()

        numbers = range(len(partitions))
        self.turns = [threading.Semaphore(0) for _ in numbers]
        self.ready = {me: lambda: True for me in numbers}
        threads = [threading.Thread(target=run, args=(me,)) for me in numbers]
        for thread in threads:
            thread.start()
        self.running = -1
        self.choose()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        assert not self.copies, "a copy that was never waited for"
