"""Training with regions and words: every similarity, the data, resuming, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch

import train_retrieval
from itm_kernels import losses, ops
from precomp import load_precomp
from similarities import SIMILARITIES, check_similarity, scorer
from small_runs import options, small
from training import Run

LOSSES = {
    "global": "info_nce",
    "scan_t2i": "info_cmr",
    "scan_i2t": "max_of_hinges",
    "late": "imc",
}


def one(few_scenes, tmp_path, **changes) -> Run:
    return Run(options(**changes), few_scenes, tmp_path)


@pytest.fixture(scope="module")
def region_files(tmp_path_factory):
    """One region shows the colour and another the animal, at random places among four."""
    directory = tmp_path_factory.mktemp("regions")
    generator = np.random.default_rng(0)
    for name, count in {"train": 24, "dev": 12, "test": 8}.items():
        kinds = np.arange(count) % 4
        regions = generator.normal(0, 0.1, (count, 4, 6))
        for image, kind in enumerate(kinds):
            colour, animal = generator.permutation(4)[:2]
            regions[image, colour, kind % 2] += 1
            regions[image, animal, 2 + kind // 2] += 1
        np.save(directory / f"{name}_ims.npy", regions.astype("f4"))
        words = [("red dog", "blue dog", "red cat", "blue cat")[kind] for kind in kinds]
        lines = [f"a {word} number {line}" for word in words for line in range(5)]
        (directory / f"{name}_caps.txt").write_text("\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_trains_on_scenes_and_leaves_its_record(
    similarity, scenes, tmp_path, capsys
):
    arguments = small("--encoder", "regions", "--similarity", similarity, "--epochs", 1)
    arguments += ["--loss", LOSSES[similarity], "--warm-up", "0", "--out", str(tmp_path)]
    assert train_retrieval.main(arguments) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["options"]["similarity"] == similarity
    assert math.isfinite(record["epochs"][0]["loss"])
    assert record["dev"] == record["epochs"][0]["dev"]
    operator = {"global": "log_sum_exp", "late": "late_interaction"}.get(
        similarity, "cross_attention"
    )
    assert operator in record["loss_time"]["chosen"]
    assert (tmp_path / "retrieved.png").exists()
    assert "loss, forward + backward" in capsys.readouterr().out


@pytest.mark.parametrize("similarity", ["global", "scan_t2i", "late"])
def test_regions_of_files_are_learned(similarity, region_files, tmp_path):
    arguments = small("--data", region_files, "--loss", "info_nce", "--epochs", 8, "--lr", 0.01)
    arguments += ["--encoder", "regions", "--similarity", similarity, "--out", str(tmp_path)]
    assert train_retrieval.main(arguments) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    # Three images of a kind: a ranking by chance alone would have R-sum below 330.
    assert record["dev"]["rsum"] > 400


def test_regions_repeated_for_every_caption_are_reduced_to_one(region_files, tmp_path):
    expected = load_precomp(region_files)
    assert expected.dev.has_regions and expected.dev.images.shape == (12, 4, 6)
    for path in region_files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "dev_ims.npy", np.repeat(expected.dev.images, 5, axis=0))
    np.testing.assert_array_equal(load_precomp(tmp_path).dev.images, expected.dev.images)
    np.save(tmp_path / "dev_ims.npy", expected.dev.images[:, 0])
    with pytest.raises(ValueError, match=r"test have \[3, 2, 3\] dimensions; expected \[N, F\] in"):
        load_precomp(tmp_path)


def test_the_scores_of_a_run_are_those_of_the_operators(few_scenes, tmp_path):
    run = one(few_scenes, tmp_path, similarity="late")
    split = few_scenes.dev
    words = run.vocabulary.encode(split.captions)
    inputs = torch.from_numpy(split.images), words
    regions, tokens = run.model.embed_tokens(*inputs)
    counts = (words > 0).sum(1)
    torch.testing.assert_close(regions.norm(dim=2), torch.ones(20, 16))
    either = [
        ops.late_interaction(regions, tokens, word_counts=counts, direction=direction)
        for direction in ("t2i", "i2t")
    ]
    torch.testing.assert_close(run.scores(split)(slice(None), slice(None)), sum(either) / 2)
    attended = {
        "scan_t2i": {"direction": "t2i", "smooth": 9, "scale": 6},
        "scan_i2t": {"direction": "i2t", "smooth": 4, "scale": 5},
    }
    for similarity, defaults in attended.items():
        expected = ops.cross_attention(regions, tokens, word_counts=counts, **defaults)
        found = scorer(run.model, similarity, *inputs)([3, 1], slice(4, 9))
        torch.testing.assert_close(found, expected[[3, 1], 4:9])
    image, text = run.embed(split)
    found = scorer(run.model, "global", *inputs)(slice(None), slice(None))
    torch.testing.assert_close(found, image @ text.T)


@pytest.mark.parametrize("loss", ["sum_of_hinges", "info_nce", "info_cmr", "imc", "sigmoid"])
def test_every_loss_takes_the_scores_of_the_batch(loss, few_scenes, tmp_path):
    run = one(few_scenes, tmp_path, similarity="scan_t2i", loss=loss)
    encoded = run.objective.encode(run.model, next(run.batches()))
    regions, words, counts, image, text = encoded
    scores = ops.cross_attention(regions, words, word_counts=counts)
    ids = torch.arange(16)
    found = run.objective.loss(encoded, ids, torch.Generator().manual_seed(1))
    criterion = run.objective.criterion
    options = {"image_ids": ids, "text_ids": ids}
    if loss == "info_cmr":
        options |= {"image": image, "text": text, "generator": torch.Generator().manual_seed(1)}
    if loss == "imc":
        options |= {"image": image, "text": text}
    assert isinstance(criterion, losses.SigmoidLoss) == (loss == "sigmoid")
    torch.testing.assert_close(found, criterion.from_scores(scores, **options))


def test_padding_changes_no_score(few_scenes, tmp_path):
    """Captions are padded to the longest of a batch in training, of the split in evaluation."""
    run = one(few_scenes, tmp_path, similarity="scan_i2t")
    run.model.eval()
    words = run.vocabulary.encode(few_scenes.dev.captions)[:7]
    images = torch.from_numpy(few_scenes.dev.images[:7])
    wider = torch.cat([words, torch.zeros(7, 5, dtype=torch.int64)], dim=1)
    found = [scorer(run.model, "scan_i2t", images, some) for some in (words, wider)]
    every = slice(None), slice(None)
    torch.testing.assert_close(found[0](*every), found[1](*every))


def test_chunks_of_the_encoders_change_no_gradient(region_files, tmp_path):
    data = load_precomp(region_files)
    found = []
    for chunk_size in (None, 5):
        run = one(data, tmp_path, similarity="late", text_encoder="bow", chunk_size=chunk_size)
        batch = next(run.batches())
        loss = run.objective(run.model, batch, run.generator)
        loss.backward()
        found.append((loss, [part.grad for part in run.model.parameters()]))
    torch.testing.assert_close(*found)


def test_an_interrupted_run_ends_with_the_very_same_result(few_scenes, tmp_path):
    chosen = options(loss="info_cmr", similarity="scan_t2i", epochs=2)
    whole = Run(chosen, few_scenes, tmp_path / "whole")
    while not whole.finished:
        whole.train_epoch()
    Run(chosen, few_scenes, tmp_path / "parts").train_epoch()
    torch.rand(7)
    second = Run(chosen, few_scenes, tmp_path / "parts")
    assert second.resume() and len(second.history) == 1
    second.train_epoch()
    assert second.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_another_similarity_is_another_run(scenes, tmp_path, capsys):
    Run(options(epochs=1, similarity="global"), scenes, tmp_path).train_epoch()
    arguments = small("--epochs", 1, "--out", tmp_path, "--loss", "info_nce", "--resume")
    assert train_retrieval.main([*arguments, "--encoder", "regions"]) == 2
    assert "similarity 'global', now 'scan_t2i'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--similarity", "late"], "--similarity late compares regions; pass --encoder regions"),
        (["--encoder", "regions", "--similarity", "sgr"], "argument --similarity: invalid choice"),
        (
            ["--encoder", "regions", "--loss", "itm"],
            "--loss itm needs one embedding per image, so it does not take scores of --similarity "
            "scan_t2i; pass --similarity global or another loss",
        ),
        (["--encoder", "regions", "--similarity", "late", "--loss", "ito"], "--loss ito needs one"),
    ],
)
def test_a_combination_that_makes_no_sense_ends_in_one_line(
    arguments, message, scenes, tmp_path, capsys
):
    try:
        code = train_retrieval.main(small(*arguments, "--out", tmp_path))
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2 and message in told[-1]


def test_the_data_must_have_what_the_encoder_reads(precomp, region_files, tmp_path, capsys):
    found = {}
    for name, data in (("features", precomp), ("regions", region_files)):
        wrong = "regions" if name == "features" else "embedding"
        arguments = small("--data", data, "--encoder", wrong, "--out", tmp_path)
        assert train_retrieval.main(arguments) == 2
        found[name] = capsys.readouterr().err
    assert "has features [24, 12]; pass --encoder embedding\n" in found["features"]
    assert "has regions [24, 4, 6]; pass --encoder regions\n" in found["regions"]
    assert all(told.count("\n") == 1 for told in found.values())


def test_processes_share_only_batches_of_embeddings(few_scenes):
    train = few_scenes.train
    check_similarity(options(similarity="global"), train, 2)
    message = "--similarity late scores the batch of one process, but 2 processes share it"
    with pytest.raises(ValueError, match=message):
        check_similarity(options(similarity="late"), train, 2)
