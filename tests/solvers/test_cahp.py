"""The seed method: its features, its clustering, its knee and its guard, each by hand or brute force."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_by_hand import make_stats

from cahp_opt import Budget, HeadSpace, Problem, Signatures, knee, select
from cahp_opt.objectives import Complementarity, FacilityLocation, Modular
from cahp_opt.solvers import CAHP, MIQP, LazyGreedy, Spectral
from cahp_opt.solvers.cahp import Reduction, plane, silhouette_knee
from cahp_opt.solvers.parts.medoids import Medoids, assigned, simplified_silhouette
from cahp_opt.stats.class_distances import euclidean, jeffries_matusita

seeds = st.integers(0, 2**32 - 1)


def points(seed: int, n: int, d: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def cost(distances: np.ndarray, medoids: np.ndarray) -> float:
    return float(distances[:, medoids].min(axis=1).sum())


# -- features --------------------------------------------------------------------------------------


def test_jeffries_matusita_by_hand() -> None:
    mean = np.array([0.0, 9, 1, 0]).reshape(4, 1, 1, 1)  # class 1 has no examples
    variance = np.array([1.0, 9, 1, 4]).reshape(4, 1, 1, 1)
    counts = np.array([10, 0, 5, 2])
    found = jeffries_matusita(Signatures(counts, mean, variance * counts[:, None, None, None]))
    apart = [1 / 8, np.log(5 / 4) / 2, 1 / 20 + np.log(5 / 4) / 2]  # classes 0-2, 0-3, 2-3
    np.testing.assert_allclose(found, [[2 * (1 - np.exp(-b)) for b in apart]], rtol=1e-12)


def test_jeffries_matusita_without_spread_and_without_difference() -> None:
    same = Signatures(np.array([1, 1]), np.full((2, 1, 2, 2), 0.3), np.zeros((2, 1, 2, 2)))
    assert np.array_equal(jeffries_matusita(same), np.zeros((1, 4)))
    apart = replace(same, mean=np.stack([same.mean[0], same.mean[1] + 1]))
    np.testing.assert_allclose(jeffries_matusita(apart), 2)
    with pytest.raises(ValueError, match="of 1 class, and"):
        jeffries_matusita(replace(same, counts=np.array([4, 0])))


def test_distances_are_exactly_zero_between_equal_points() -> None:
    rows = np.repeat(1e3 + points(0, 3, 7), 2, axis=0)
    found = euclidean(rows)
    direct = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.testing.assert_allclose(found, direct, rtol=1e-12)
    assert found[0, 1] == 0 and np.array_equal(found, found.T)


# -- clustering ------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 9))
def test_no_swap_of_a_medoid_gains(seed: int, n: int) -> None:
    distances = euclidean(points(seed, n))
    found = Medoids(distances)
    costs = []
    for k in range(1, n + 1):
        medoids = found.of(k)
        assert len(set(medoids.tolist())) == k
        costs.append(cost(distances, medoids))
        for place in range(k):
            for other in set(range(n)) - set(medoids.tolist()):
                swapped = medoids.copy()
                swapped[place] = other
                assert cost(distances, swapped) >= costs[-1] - 1e-9
    assert costs[-1] == 0
    assert costs[0] == pytest.approx(distances.sum(axis=0).min())


def test_medoids_are_nearly_those_of_brute_force() -> None:
    ratios = []
    for seed in range(30):
        distances = euclidean(points(seed, 9))
        for k in (2, 3, 4):
            best = min(cost(distances, np.array(c)) for c in combinations(range(9), k))
            found = cost(distances, Medoids(distances).of(k))
            assert found >= best - 1e-12
            ratios.append(found / best)
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.8 and max(ratios) < 1.2


def test_planted_clusters_are_found() -> None:
    rng = np.random.default_rng(3)
    centres = rng.permutation([[0, 0], [9, 0], [0, 9], [9, 9], [20, 20]])
    labels = rng.integers(0, 5, 60)
    distances = euclidean(centres[labels] + rng.normal(size=(60, 2)))
    owner = assigned(distances, Medoids(distances).of(5))
    assert len(set(zip(owner.tolist(), labels.tolist(), strict=True))) == 5


def test_after_the_deadline_nothing_is_swapped() -> None:
    distances = euclidean(points(1, 40))
    early = cost(distances, Medoids(distances, deadline=0.0).of(6))
    assert cost(distances, Medoids(distances).of(6)) < early


def test_silhouette_by_hand() -> None:
    distances = euclidean(np.array([[0.0], [1], [10], [14]]))
    # Medoids 0 and 10: the point 1 has a = 1, b = 9; the point 14 has a = 4, b = 14.
    expected = (8 / 9 + 10 / 14) / 2
    assert simplified_silhouette(distances, np.array([0, 2])) == pytest.approx(expected)
    # Medoids 0, 10 and 14: b of the point 1 is the mean of 9 and 13.
    assert simplified_silhouette(distances, np.array([0, 2, 3])) == pytest.approx(10 / 11)
    assert simplified_silhouette(np.zeros((3, 3)), np.array([0, 1])) == 1


def test_the_knee_is_that_of_the_silhouettes() -> None:
    medoids = Medoids(euclidean(points(5, 40)))
    numbers = range(2, 40)
    curve = [simplified_silhouette(medoids.distances, medoids.of(k)) for k in numbers]
    found = [silhouette_knee(medoids, degree) for degree in (2, 3, 4, 5, 6)]
    assert found == [int(knee(list(numbers), curve, degree=d)) for d in (2, 3, 4, 5, 6)]
    assert found[0] > found[-1] >= 2
    assert silhouette_knee(Medoids(euclidean(points(0, 4))), 4) == 4


# -- the solver ------------------------------------------------------------------------------------

SPACE = HeadSpace.uniform(3, 8)


def complementarity(seed: int = 0) -> Complementarity:
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(6, 4))
    features = centres[rng.integers(0, 4, 24)] + rng.normal(size=(24, 4))
    features[16:] = centres[4] + 0.1 * rng.normal(size=(8, 4))  # the last block is one cluster
    return Complementarity(features, rng.random(24))


def test_the_most_salient_unit_of_every_cluster_is_kept_and_no_block_stays_empty() -> None:
    objective = complementarity()
    solver = CAHP(clusters=5, reduction=Reduction.NONE)
    selection = select(Problem(objective, Budget.heads(SPACE, 24)), solver)
    distances = euclidean(objective.features)
    owner = assigned(distances, Medoids(distances).of(5))
    best = {max(np.flatnonzero(owner == c), key=lambda u: objective.salience[u]) for c in range(5)}
    assert set(np.flatnonzero(selection.kept)) == best
    assert selection.stats["given_back"] == selection.stats["empty_blocks"] == 0

    few = select(Problem(objective, Budget.heads(SPACE, 24)), replace(solver, clusters=1))
    top = [where.start + int(objective.salience[where].argmax()) for where in SPACE.slices]
    assert set(top) == set(np.flatnonzero(few.kept))
    assert few.stats["clusters"] == 1 and few.stats["given_back"] == 2


def test_the_budget_holds_and_what_it_cost_is_told() -> None:
    objective, solver = complementarity(), CAHP(clusters=12, reduction=Reduction.NONE)
    six = select(Problem(objective, Budget.heads(SPACE, 6)), solver)
    assert six.kept.sum() <= 6 and six.stats["wanted"] == 12
    assert six.kept.sum() == sum(int(six.stats[s]) for s in ("clusters", "given_back"))
    assert six.stats["empty_blocks"] == 0 and np.all(six.counts > 0)
    two = select(Problem(objective, Budget.heads(SPACE, 2)), solver)
    assert two.kept.sum() == 2 and two.stats["empty_blocks"] == 1
    none = select(Problem(objective, Budget.heads(SPACE, 0)), solver)
    assert none.kept.sum() == 0 and none.stats["empty_blocks"] == 3
    odd = select(Problem(objective, Budget(SPACE, multiple_of=8)), solver)
    assert set(odd.counts.tolist()) <= {0, 8}
    shut = select(Problem(objective, Budget.heads(SPACE, 24, maximum=[8, 8, 0])), solver)
    assert shut.counts[2] == 0 and shut.counts[:2].all()


def test_a_plane_is_drawn_by_the_seed() -> None:
    objective = complementarity()
    first, again, other = (plane(objective.features, seed) for seed in (0, 0, 1))
    assert first.shape == (24, 2) and np.array_equal(first, again)
    assert not np.allclose(euclidean(first), euclidean(other))
    assert np.array_equal(plane(np.ones((9, 5)), 0), np.ones((9, 5)))
    # units that behave alike stay together
    owner = assigned(euclidean(first), Medoids(euclidean(first)).of(5))
    assert len(set(owner[16:].tolist())) == 1


def test_bad_options_and_missing_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(complementarity(), Budget.heads(SPACE, 6))
    with pytest.raises(ValueError, match="`degree` must be at least 1, got 0"):
        CAHP(degree=0)
    with pytest.raises(ValueError, match="`clusters` must be at least 1, got 0"):
        CAHP(clusters=0)
    with pytest.raises(TypeError, match="`reduction` must be a Reduction"):
        CAHP(reduction="tsne")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`Modular` does not say.*`Complementarity`"):
        select(Problem(Modular(np.ones(24)), problem.budget), CAHP())
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match=r"pip install 'cahp-opt\[cahp\]'"):
        select(problem, CAHP())
    assert select(problem, CAHP(reduction=Reduction.NONE)).kept.any()


# -- the same idea as an objective ------------------------------------------------------------------


def test_the_value_is_that_of_medoids() -> None:
    objective = complementarity(2)
    distances = euclidean(objective.features)
    kept = np.zeros(24, dtype=bool)
    kept[Medoids(distances).of(4)] = True
    expected = 24 - cost(distances, np.flatnonzero(kept)) / distances.max()
    assert objective.value(kept) == pytest.approx(expected)
    best = select(Problem(objective, Budget.heads(SPACE, 4)), MIQP(), time_limit=20)
    assert objective.value(kept) <= best.bound and best.value >= objective.value(kept) - 1e-9
    spectral = select(Problem(objective, Budget.heads(SPACE, 6)), Spectral())
    assert spectral.kept.sum() == 6


def test_objectives_are_made_from_signatures() -> None:
    stats = make_stats()
    assert stats.signatures is not None
    features = jeffries_matusita(stats.signatures)
    objective = Complementarity.from_stats(stats)
    assert np.array_equal(objective.features, features)
    assert np.array_equal(objective.salience, stats.salience.mean)
    weighted = FacilityLocation.from_signatures(stats)
    assert np.array_equal(weighted.similarity, objective.similarity)
    assert np.array_equal(weighted.weights, stats.salience.mean)
    assert select(Problem(weighted, Budget.heads(stats.space, 2)), LazyGreedy()).gap < 0.5
    with pytest.raises(ValueError, match="no signatures.*`signature_size=32`"):
        Complementarity.from_stats(stats.without("signatures"))
    with pytest.raises(ValueError, match="no signatures.*`signature_size=32`"):
        FacilityLocation.from_signatures(stats.without("signatures"))


@pytest.mark.parametrize(
    ("features", "salience", "words"),
    [
        (np.ones(3), np.ones(3), r"`features` must have shape \[n, d\]"),
        (np.full((3, 2), np.nan), np.ones(3), "`features` holds"),
        (np.ones((3, 2)), np.ones(2), "`salience` must be 3 numbers"),
        (np.ones((3, 2)), -np.ones(3), "`salience` must be 3 numbers of at least 0"),
    ],
)
def test_bad_features_are_refused(features: object, salience: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Complementarity(features, salience)  # type: ignore[arg-type]
