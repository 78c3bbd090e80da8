"""The training run: epochs, evaluation on dev, and checkpoints that resume bitwise identically."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from batches import Batch, draw_batches
from checkpoints import read_checked, write_atomically
from dataset import CAPTIONS_PER_IMAGE, RetrievalData, Split
from itm_kernels.retrieval import RetrievalReport, evaluate
from model_builder import build_model
from objectives import Step, build_objective
from process_group import Processes
from records import Options, report_as_json
from similarities import Scorer, check_similarity, evaluate_by_scores, is_fine_grained, scorer
from vocabulary import UNKNOWN, Vocabulary

LAST, BEST = "last.pt", "best.pt"
RECORD = "history.json"
WARM_UP_LOSS = "sum_of_hinges"  # has no parameters, so checkpoints do not store it

# The parts of a checkpoint.
PARTS = {
    **dict.fromkeys(("model", "objective", "optimiser", "schedule", "options"), dict),
    **dict.fromkeys(("dropout_generator", "generator"), Tensor),
    **dict.fromkeys(("history", "seconds"), list),
    "data": str,
}


class Run:
    """One training run in one directory.

    Args:
        options: the options of the run.
        data: images and captions.
        directory: folder of the checkpoints, created if needed.
        processes: those that share each batch; None for this one only.

    Raises:
        ValueError: no word of the training captions occurs often enough, a batch has fewer rows
            than there are processes, or the similarity does not fit the other options or the data.
    """

    def __init__(
        self,
        options: Options,
        data: RetrievalData,
        directory: Path,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        check_similarity(options, data.train, self.processes.size)
        torch.manual_seed(options.seed)
        self.options = options
        self.data = data
        self.digest = data.digest()  # every checkpoint stores it
        self.directory = directory
        pixels = data.train.has_pixels
        self.vocabulary = Vocabulary(
            data.train.captions, min_count=1 if pixels else 2, tokenizer=options.tokenizer
        )
        self.images = torch.from_numpy(data.train.images)
        self.words = self.vocabulary.encode(data.train.captions)
        # Share of the training captions without a single known word.
        self.unread = (self.words <= UNKNOWN).all(1).double().mean().item()
        self.model = build_model(
            data.train,
            self.words,
            len(self.vocabulary),
            dim=options.dim,
            reader=options.text_encoder,
            processes=self.processes,
            chunk_size=options.chunk_size,
            regions=options.similarity is not None,
        )
        self.objective, self.warm_up_objective = (
            build_objective(
                loss,
                self.model.widths,
                group=self.processes.group,
                similarity=options.similarity,
            )
            for loss in (options.loss, WARM_UP_LOSS)
        )
        parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=options.learning_rate, fused=True)
        self.batch_size = min(options.batch_size, len(data.train))
        if self.batch_size < self.processes.size:
            raise ValueError(
                f"batches of {self.batch_size} images have none for some of the "
                f"{self.processes.size} processes; start fewer"
            )
        self.steps_per_epoch = CAPTIONS_PER_IMAGE * (len(data.train) // self.batch_size)
        # One cycle: the rate rises for a third of the steps, then falls along a cosine.
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            max_lr=options.learning_rate,
            total_steps=options.epochs * self.steps_per_epoch,
            cycle_momentum=False,
        )
        # Draws the order of the data, clusters, noise and negatives. Dropout uses PyTorch's own.
        self.generator = torch.Generator().manual_seed(options.seed)
        self.history: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        directory.mkdir(parents=True, exist_ok=True)

    @cached_property
    def step(self) -> nn.Module:
        """Return the loss of a batch; gradients are averaged over the processes."""
        return self.processes.wrap(Step(self.model, self.objective, self.warm_up_objective))

    @property
    def finished(self) -> bool:
        """Return whether all epochs are done."""
        return len(self.history) >= self.options.epochs

    @property
    def best_epoch(self) -> int:
        """Return the number (from 1) of the epoch with the highest dev R-sum; ties: the first."""
        return max(self.history, key=lambda row: row["dev"]["rsum"])["epoch"]

    def train_epoch(self) -> dict[str, Any]:
        """Train one epoch, evaluate it on dev and write the checkpoints.

        Returns:
            The epoch's row of the history.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        start = time.perf_counter()
        epoch = len(self.history) + 1
        warming_up = epoch <= self.options.warm_up
        total = torch.zeros((), dtype=torch.float64)
        bar = tqdm(
            self.batches(),
            total=self.steps_per_epoch,
            desc=f"epoch {epoch}/{self.options.epochs}",
            leave=False,
            disable=None if self.processes.writes else True,  # None: no bar in a log file
        )
        for step, batch in enumerate(bar, start=1):
            loss = self.step(int(warming_up), batch, self.generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} in epoch {epoch}, step {step}; try a lower --lr"
                )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            total += loss.detach()
            bar.set_postfix(loss=f"{total.item() / step:.4f}", refresh=False)
        self.processes.copy_buffers(self.model)
        report = self.evaluate(self.data.dev)
        best_before = max((row["dev"]["rsum"] for row in self.history), default=-1.0)
        row = {
            "epoch": epoch,
            "trained_with": WARM_UP_LOSS if warming_up else self.options.loss,
            "loss": total.item() / self.steps_per_epoch,
            "dev": report_as_json(report),
        }
        self.history.append(row)
        self.seconds.append(time.perf_counter() - start)
        if self.processes.writes:
            self._write(is_best=report.rsum > best_before)
        return row

    def _write(self, *, is_best: bool) -> None:
        if is_best:
            write_atomically(self.directory / BEST, {"model": self.model.state_dict()})
        # Written after the best checkpoint: an interruption between the two repeats this epoch.
        write_atomically(self.directory / LAST, self._state())

    def batches(self) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch."""
        return draw_batches(
            self.images, self.words, self.batch_size, self.generator, self.processes
        )

    def embed(self, split: Split) -> tuple[Tensor, Tensor]:
        """Encode the images and captions of a split."""
        return self.model.embed(*self._inputs(split))

    def scores(self, split: Split) -> Scorer:
        """Encode a split and return a function that scores any of its images and captions."""
        return scorer(self.model, self.options.similarity, *self._inputs(split))

    def _inputs(self, split: Split) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(split.images), self.vocabulary.encode(split.captions)

    def evaluate(self, split: Split) -> RetrievalReport:
        """Measure retrieval on a split in both directions; embeddings have norm 1."""
        if is_fine_grained(self.options.similarity):
            return evaluate_by_scores(self.scores(split), split, shows=self.processes.writes)
        return evaluate(*self.embed(split), metric="cosine")

    def restore_best(self) -> None:
        """Load the weights of the best dev epoch into the model.

        Raises:
            ValueError: the checkpoint is missing, damaged or of another model.
        """
        path = self.directory / BEST
        try:
            self.model.load_state_dict(read_checked(path, {"model": dict})["model"])
        except RuntimeError as error:
            raise ValueError(f"{path} holds the weights of another model") from error

    def exists(self) -> bool:
        """Return whether the directory contains files of a run."""
        return any((self.directory / name).exists() for name in (LAST, BEST, RECORD))

    def clear(self) -> None:
        """Delete the checkpoints and the record in the directory."""
        for name in (LAST, BEST, RECORD):
            (self.directory / name).unlink(missing_ok=True)

    def resume(self) -> bool:
        """Continue from the last finished epoch, if there is one.

        Returns:
            Whether there was a checkpoint.

        Raises:
            ValueError: the checkpoint belongs to other options or other data, or the checkpoint of
                the last or the best epoch is damaged.
        """
        path = self.directory / LAST
        if not path.exists() and not (self.directory / RECORD).exists():
            return False  # at most a best checkpoint: the first epoch did not finish
        start_anew = "pass --overwrite to start again"
        try:
            state = read_checked(path, PARTS)
        except ValueError as error:
            raise ValueError(f"--resume: {error}; {start_anew}") from error
        mine = asdict(self.options)
        differing = [
            name for name in mine if name != "data" and state["options"].get(name) != mine[name]
        ]
        if differing:
            told = ", ".join(
                f"{name} {state['options'].get(name)!r}, now {mine[name]!r}" for name in differing
            )
            raise ValueError(
                f"--resume: {path} was made with {told}; "
                f"pass the same options or another --out, or {start_anew}"
            )
        if state["data"] != self.digest:
            raise ValueError(
                f"--resume: {path} does not match the data, which has changed; {start_anew}"
            )
        try:
            self.restore_best()
        except ValueError as error:
            raise ValueError(f"--resume: {error}; {start_anew}") from error
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["dropout_generator"])
            self.generator.set_state(state["generator"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--resume: {path} is damaged; {start_anew}") from error
        self.history = state["history"]
        self.seconds = state["seconds"]
        return True

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "objective": self.objective,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
        }

    def _state(self) -> dict[str, Any]:
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "options": asdict(self.options),
            "data": self.digest,
            "dropout_generator": torch.get_rng_state(),
            "generator": self.generator.get_state(),
            "history": self.history,
            "seconds": self.seconds,
        }
