"""Synthetic vectors and InfoCMR against their oracles, in fp64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import oracles
from itm_kernels import losses, ops, synthesis
from oracles import comparing
from oracles.batches import batch, embeddings
from oracles.pairing import is_negative

# The Gram matrices lose a few digits to their inverse.
close = functools.partial(comparing.close, rtol=1e-8, atol=1e-8)


def problem(layout: str, dim: int) -> dict[str, object]:
    """Draws unit anchors and members, an assignment with an empty cluster, and ids."""
    generator = np.random.default_rng([dim, len(layout)])
    anchors = oracles.normalized(embeddings(generator, 5, dim))
    members = oracles.normalized(embeddings(generator, 12, dim))
    anchor_ids, member_ids = np.arange(5) * 3, generator.integers(0, 5, 12) * 3
    # Cluster 3 of 5 stays empty, and cluster 4 holds only members of the first anchor.
    assignment = generator.integers(0, 3, 12)
    member_ids[:2], assignment[:2] = 0, 4
    if layout == "per_anchor":
        assignment = np.stack([generator.permutation(assignment) for _ in range(5)])
        assignment[anchor_ids[:, None] == member_ids[None, :]] = -1
    return {
        "anchors": anchors,
        "members": members,
        "assignment": assignment,
        "anchor_ids": anchor_ids,
        "member_ids": member_ids,
    }


@pytest.mark.parametrize("iterations", [0, 1, 3, 30])
@pytest.mark.parametrize("clusters", [1, 3, 8])
@pytest.mark.parametrize("dim", [1, 3, 96])
def test_kmeans(dim, clusters, iterations) -> None:
    generator = np.random.default_rng([dim, clusters])
    x, init = embeddings(generator, 23, dim), embeddings(generator, clusters, dim)
    # Far from everything: an empty cluster keeps its centroid.
    init[-1] += 0.0 if clusters == 1 else 1e3
    assignment, centroids = oracles.kmeans(x, init, iterations)
    found = ops.kmeans(torch.tensor(x), clusters, iterations=iterations, init=torch.tensor(init))
    assert found.assignment.tolist() == assignment.tolist()
    close(found.centroids, centroids)


def test_kmeans_ties_go_to_the_lowest_cluster() -> None:
    """Integer points on the bisector, and two equal centroids."""
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 5.0]]).double()
    init = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]).double()
    assert ops.kmeans(x, 3, iterations=0, init=init).assignment.tolist() == [0, 0, 0]
    found = ops.kmeans(x, 3, iterations=1, init=init)
    close(found.centroids, [[0.0, 5.0 / 3.0], [-1.0, 0.0], [1.0, 0.0]])
    # The second point is now as near to cluster 1 as to cluster 2.
    assert found.assignment.tolist() == [0, 1, 0]


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
@pytest.mark.parametrize("dim", [1, 3, 96])
@pytest.mark.parametrize("weights", ["attention", "kam"])
@pytest.mark.parametrize("layout", ["shared", "per_anchor"])
def test_rbf_synthesis(layout, weights, dim, sigma, with_ids) -> None:
    given = problem(layout, dim)
    if not with_ids:
        del given["anchor_ids"], given["member_ids"]
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    options = {"num_clusters": 5, "sigma": sigma, "weights": weights}
    vectors, valid = oracles.rbf_synthesis(**given, **options)
    assert not valid[:, 3].any()
    found = ops.rbf_synthesis(**tensors, **options)
    assert found.valid.tolist() == valid.tolist()
    close(found.vectors[found.valid], vectors[valid])
    assert torch.isfinite(found.vectors).all()

    logits = ops.rbf_synthesis_logits(**tensors, **options)
    cosines = oracles.rbf_synthesis_cosines(given["anchors"], vectors, valid)
    assert logits.valid.tolist() == valid.tolist()
    close(logits.cosine[logits.valid], cosines[valid])


@pytest.mark.parametrize("weights", ["attention", "kam"])
def test_rows_are_normalised_first(weights) -> None:
    """The module's vectors do not depend on the norms of its inputs."""
    b = batch("captions", 4, 3)
    anchors, members = oracles.normalized(b.image), oracles.normalized(b.text)
    vectors, valid = oracles.rbf_synthesis(
        anchors,
        members,
        np.zeros(len(members), dtype=np.int64),
        1,
        0.4,
        weights,
        anchor_ids=b.image_ids,
        member_ids=b.text_ids,
    )
    module = synthesis.HardNegativeSynthesis(1, sigma=0.4, weights=weights)
    ids = {"anchor_ids": b.ids["image_ids"], "member_ids": b.ids["text_ids"]}
    found = module(*b.tensors, **ids)
    assert found.valid.tolist() == valid.tolist()
    close(found.vectors, vectors)
    assert not module(*(x.requires_grad_() for x in b.tensors), **ids).vectors.requires_grad


@pytest.mark.parametrize("weights", ["attention", "kam"])
@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated"])
def test_per_anchor_is_the_literal_reading(kind, weights) -> None:
    """One cluster per anchor, of exactly the members that do not share its id."""
    b = batch(kind, 5, 3)
    anchors, members = oracles.normalized(b.image), oracles.normalized(b.text)
    assignment = np.full((5, len(members)), -1)
    for i in range(5):
        for j in range(len(members)):
            if is_negative(i, j, b.image_ids, b.text_ids):
                assignment[i, j] = 0
    vectors, valid = oracles.rbf_synthesis(anchors, members, assignment, 1, 0.4, weights)
    module = synthesis.HardNegativeSynthesis(1, sigma=0.4, weights=weights, clustering="per_anchor")
    found = module(*b.tensors, anchor_ids=b.ids["image_ids"], member_ids=b.ids["text_ids"])
    assert found.valid.tolist() == valid.tolist()
    close(found.vectors[found.valid], vectors[valid])


@pytest.mark.parametrize("clustering", ["shared", "per_anchor"])
@pytest.mark.parametrize("weights", ["attention", "kam"])
@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated", "permuted"])
def test_info_cmr_with_one_cluster(kind, weights, clustering) -> None:
    """A single cluster needs no k-means: the vectors are known."""
    b = batch(kind, 5, 3)
    image, text = oracles.normalized(b.image), oracles.normalized(b.text)
    extras: dict[str, object] = {}
    for role, anchors, members, flipped in (
        ("synthetic_text", image, text, False),
        ("synthetic_image", text, image, True),
    ):
        shape = (len(anchors), len(members))
        negative = np.array(
            [
                [
                    is_negative(*((n, a) if flipped else (a, n)), b.image_ids, b.text_ids)
                    for n in range(shape[1])
                ]
                for a in range(shape[0])
            ]
        )
        # Shared: kam is solved over all members, and the softmax leaves out the positives. That
        # is the oracle's shared layout with ids that mark the positives.
        if clustering == "per_anchor":
            assignment = np.where(negative, 0, -1)
            found = oracles.rbf_synthesis(anchors, members, assignment, 1, 0.4, weights)
        else:
            own = np.arange(5) if b.image_ids is None else b.image_ids
            other = np.arange(5) if b.text_ids is None else b.text_ids
            ids = (other, own) if flipped else (own, other)
            cluster = np.zeros(shape[1], dtype=np.int64)
            found = oracles.rbf_synthesis(anchors, members, cluster, 1, 0.4, weights, 1e-4, *ids)
        extras[role], extras[f"{role}_valid"] = found
    for reduction in ("none", "sum", "mean"):
        loss = losses.InfoCMRLoss(
            0.2,
            num_clusters=1,
            sigma=0.4,
            weights=weights,
            clustering=clustering,
            num_noise=0,
            reduction=reduction,
        )
        expected = oracles.info_cmr(
            b.image, b.text, 0.2, **b.oracle_ids, **extras, reduction=reduction
        )
        close(loss(*b.tensors, **b.ids), expected)


@pytest.mark.parametrize("weights", ["attention", "kam"])
def test_info_cmr_with_a_cluster_per_negative(weights) -> None:
    """As many clusters as distinct negatives: k-means++ starts one in each, and the synthetic
    vectors point at the members themselves; the surplus clusters take no part."""
    b = batch("diagonal", 5, 3)
    image, text = oracles.normalized(b.image), oracles.normalized(b.text)
    others = [[n for n in range(5) if n != a] for a in range(5)]
    expected = oracles.info_cmr(
        b.image,
        b.text,
        0.2,
        synthetic_text=text[others],
        synthetic_image=image[others],
    )
    for num_clusters in (4, 7):
        loss = losses.InfoCMRLoss(
            0.2, num_clusters=num_clusters, weights=weights, clustering="per_anchor", num_noise=0
        )
        close(loss(*b.tensors), expected)


def test_info_cmr_noise_is_shared() -> None:
    """In one dimension a noise vector is a sign: one count of positive signs explains all pairs."""
    b = batch("permuted", 5, 1)
    loss = losses.InfoCMRLoss(0.9, num_clusters=0, num_noise=6, reduction="none")
    counts = []
    for seed in range(8):
        found = loss(*b.tensors, **b.ids, generator=torch.Generator().manual_seed(seed))
        again = loss(*b.tensors, **b.ids, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(found, again)
        fits = []
        for positive in range(7):
            signs = np.array([[1.0]] * positive + [[-1.0]] * (6 - positive))
            expected = oracles.info_cmr(
                b.image, b.text, 0.9, **b.oracle_ids, noise=signs, reduction="none"
            )
            if np.allclose(found.numpy(), expected, atol=1e-9):
                fits.append(positive)
        assert len(fits) == 1
        counts += fits
    assert len(set(counts)) > 1


def test_info_cmr_noise_is_isotropic() -> None:
    """The cosine with a random direction of space is uniform on [-1, 1] (Archimedes), so that the
    mean of e^(cos / t) is t sinh(1 / t); 200 000 directions leave an error below one percent."""
    image = torch.tensor([[1.0, 2.0, 3.0]]).double()
    text = torch.tensor([[-2.0, 0.5, 1.0]]).double()
    loss = losses.InfoCMRLoss(1.0, num_clusters=0, num_noise=200_000)
    found = loss(image, text, generator=torch.Generator().manual_seed(0))
    positive = float(oracles.score_matrix(image.numpy(), text.numpy(), "cosine")[0, 0])
    expected = 2 * (np.log(np.exp(positive) + 200_000 * np.sinh(1.0)) - positive)
    assert found.item() == pytest.approx(expected, abs=0.02)


def test_info_cmr_noise_is_afresh() -> None:
    """Two steps without a generator draw different noise."""
    b = batch("diagonal", 4, 3)
    loss = losses.InfoCMRLoss(num_clusters=0, num_noise=4)
    assert loss(*b.tensors).item() != loss(*b.tensors).item()
