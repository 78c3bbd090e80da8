"""Data that a run learns in seconds: a few scenes, and features that tell a few words apart."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import train_retrieval
from scenes import load_scenes


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_scenes():
    return load_scenes(train=40, dev=20, test=10)


@pytest.fixture
def scenes(monkeypatch, few_scenes):
    monkeypatch.setattr(train_retrieval, "load_scenes", lambda: few_scenes)
    return few_scenes


@pytest.fixture(scope="module")
def precomp(tmp_path_factory):
    """Features that tell 'red' from 'blue' and 'dog' from 'cat', so that something is learned."""
    directory = tmp_path_factory.mktemp("precomp")
    generator = np.random.default_rng(0)
    for name, count in {"train": 24, "dev": 12, "test": 8}.items():
        kinds = np.arange(count) % 4
        features = np.eye(4)[kinds].repeat(3, axis=1) + generator.normal(0, 0.1, (count, 12))
        np.save(directory / f"{name}_ims.npy", features.astype("f4"))
        words = [("red dog", "blue dog", "red cat", "blue cat")[kind] for kind in kinds]
        lines = [f"a {word} number {line}" for word in words for line in range(5)]
        (directory / f"{name}_caps.txt").write_text("\n".join(lines) + "\n")
    return directory
