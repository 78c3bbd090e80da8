"""The checkpoint kept for the best epoch is that of one that sees."""

import pytest
import torch

from small_runs import options
from training import BEST, Run


@pytest.mark.parametrize("blind", [torch.ones_like, torch.zeros_like], ids=["ones", "zeros"])
def test_a_blind_epoch_is_never_the_best(blind, few_scenes, tmp_path, monkeypatch):
    """All candidates tie: with ties in the query's favour such an epoch had R-sum 600."""
    run = Run(options(epochs=2), few_scenes, tmp_path)
    seeing = run.train_epoch()["dev"]
    kept = (tmp_path / BEST).read_bytes()
    embed = run.embed
    monkeypatch.setattr(run, "embed", lambda split: tuple(blind(x) for x in embed(split)))
    report = run.train_epoch()["dev"]
    chance = 5 + 25 + 50
    assert sum(report["t2i"].values()) == pytest.approx(chance)
    assert report["rsum"] < seeing["rsum"]
    assert run.best_epoch == 1 and (tmp_path / BEST).read_bytes() == kept
