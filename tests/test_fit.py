"""The fit room: gradients, samples, rates, and fits that can be repeated."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faces import smooth_volume
from tests.trees import (
    SHAPE,
    blocks_of,
    draw,
    some_blocks,
    some_parameters,
    some_weights,
    tree_shapes,
)
from tinc_codec.fit import plan as plan_module
from tinc_codec.fit.encoder import encode_trees
from tinc_codec.fit.gradient import FusedGradient, TorchGradient, sample_positions
from tinc_codec.fit.initialise import initial_parameters
from tinc_codec.fit.loss import RateTerm
from tinc_codec.fit.plan import STEPS_BY_EFFORT, fit_plan
from tinc_codec.fit.sampler import LatticeSampler
from tinc_codec.fit.trainer import FitPlan, Trainer, leaf_variances, tensors_of
from tinc_codec.model.budget import smallest_section
from tinc_codec.model.octree_mlp import TreeShape, uniform_widths
from tinc_codec.model.section import read_tree, tree_parameters
from tinc_codec.model.torch_tree import TorchTree
from tinc_codec.params import MAX_EFFORT, EncodingParams
from tinc_codec.quantise.scalar import q_step


class TestSampler:
    @given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
    def test_a_lattice_covers_its_block_without_repeating(self, counts, seed):
        counts = np.array(counts, dtype=np.int64)
        sampler = LatticeSampler(counts, seed)
        for _ in range(3):
            starts, strides = sampler.draw()
            assert starts.dtype == strides.dtype == np.int64
            assert (starts < np.maximum(counts, 1)).all()
            assert (strides < np.maximum(counts, 1)).all()
            for count, start, stride in zip(counts, starts, strides, strict=True):
                if count:
                    seen = (start + np.arange(count) * stride) % count
                    assert len(np.unique(seen)) == count

    def test_draws_differ_from_step_to_step_and_repeat_with_the_seed(self):
        counts = np.full(50, 4096)
        one, same, other = (LatticeSampler(counts, seed) for seed in (1, 1, 2))
        first = one.draw()
        np.testing.assert_array_equal(first, same.draw())
        assert (first[0] != other.draw()[0]).mean() > 0.9
        assert (first[0] != one.draw()[0]).mean() > 0.9

    def test_samples_are_spread_over_all_voxels(self):
        counts = np.array([1000])
        sampler = LatticeSampler(counts, 0)
        hits = np.zeros(1000)
        for _ in range(400):
            (start,), (stride,) = sampler.draw()
            hits[(start + np.arange(64) * stride) % 1000] += 1
        # 25.6 expected, deviation 5 for independent draws.
        assert hits.min() > 5
        assert hits.max() < 60

    @given(tree_shapes(max_voxels=400), st.integers(1, 70), st.integers(0, 99))
    def test_positions_expand_the_lattice(self, shape, samples, seed):
        starts, strides = draw(shape, seed)
        index, present = sample_positions(shape.leaf_extents, starts, strides, samples)
        counts = shape.leaf_extents.prod(axis=1)
        np.testing.assert_array_equal(present.sum(axis=1), np.minimum(counts, samples))
        for leaf, count in enumerate(counts):
            chosen = index[leaf][present[leaf]]
            assert len(np.unique(chosen)) == len(chosen)
            assert (chosen < max(count, 1)).all()
            assert (index[leaf][~present[leaf]] == 0).all()


class TestGradient:
    @settings(max_examples=40)
    @given(tree_shapes(max_voxels=800), st.integers(1, 3), st.integers(0, 99), st.booleans())
    def test_compiled_and_autograd_agree(self, shape, models, seed, masked):
        blocks = some_blocks(shape, models, seed)
        weights = some_weights(shape, models, seed) if masked else None
        parameters = torch.from_numpy(some_parameters(shape, models, seed))
        samples = draw(shape, seed)
        fused = FusedGradient(shape, blocks, weights, 20, 1)
        reference = TorchGradient(shape, blocks, weights, 20, "cpu")
        loss, gradient = fused(parameters, *samples)
        expected_loss, expected = reference(parameters, *samples)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-6)
        size = expected.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(gradient / size, expected / size, rtol=0, atol=2e-4)

    def full_loss(self, shape, parameters, blocks, weights):
        """Mean square error over every voxel that counts, in float64, by the torch tree."""
        counts = shape.leaf_extents.prod(axis=1)
        size = blocks.shape[-1]
        index, present = sample_positions(
            shape.leaf_extents, np.zeros_like(counts), np.ones_like(counts), size
        )
        extents = np.maximum(shape.leaf_extents, 1)[:, None]
        places = np.stack(
            [
                index // (extents[..., 1] * extents[..., 2]),
                index // extents[..., 2] % extents[..., 1],
                index % extents[..., 2],
            ],
            -1,
        )
        step, shift = shape.coordinate_map
        coordinates = ((places + shape.leaf_origins[:, None]) * step - shift)[..., list(shape.axes)]
        tree = TorchTree(shape, "cpu")
        found = tree(parameters.double(), torch.from_numpy(coordinates).double())
        factor = torch.from_numpy(present.astype(np.float64))[None]
        if weights is not None:
            factor = factor * torch.from_numpy(weights)
        else:
            factor = factor.expand(found.shape)
        error = (found - torch.from_numpy(blocks)).square() * factor
        return error.sum(dim=(1, 2)) / factor.sum(dim=(1, 2))

    @pytest.mark.parametrize("masked", [False, True])
    def test_with_all_samples_it_is_the_mean_square_error(self, masked):
        blocks = some_blocks(SHAPE, 2)
        weights = some_weights(SHAPE, 2) if masked else None
        parameters = torch.from_numpy(some_parameters(SHAPE, 2))
        fused = FusedGradient(SHAPE, blocks, weights, 10**6, 1)
        loss, gradient = fused(parameters, *draw(SHAPE))
        expected = self.full_loss(SHAPE, parameters, blocks, weights)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        # Central differences in float64.
        rng = np.random.default_rng(0)
        for index in rng.choice(SHAPE.parameter_count, 10, replace=False):
            for model in range(2):
                shifted = parameters.double().repeat(2, 1, 1)
                shifted[0, model, index] += 1e-5
                shifted[1, model, index] -= 1e-5
                up, down = (
                    float(self.full_loss(SHAPE, p, blocks, weights)[model]) for p in shifted
                )
                slope = (up - down) / 2e-5
                scale = max(1.0, float(gradient[model].abs().max()))
                assert float(gradient[model, index]) == pytest.approx(slope, abs=2e-4 * scale)

    def test_sampled_gradients_are_unbiased(self):
        blocks, parameters = some_blocks(SHAPE), torch.from_numpy(some_parameters(SHAPE))
        whole, expected = FusedGradient(SHAPE, blocks, None, 10**6, 1)(parameters, *draw(SHAPE))
        fused = FusedGradient(SHAPE, blocks, None, 16, 1)
        sampler = LatticeSampler(SHAPE.leaf_extents.prod(axis=1), 0)
        losses, total = [], torch.zeros_like(expected)
        for _ in range(600):
            loss, gradient = fused(parameters, *sampler.draw())
            losses.append(float(loss[0]))
            total += gradient
        assert np.mean(losses) == pytest.approx(float(whole[0]), rel=0.03)
        cosine = torch.nn.functional.cosine_similarity(total, expected)
        assert float(cosine) > 0.99

    def test_voxels_that_do_not_count_do_not_matter(self):
        weights = some_weights(SHAPE)
        blocks = some_blocks(SHAPE)
        spoilt = np.where(weights == 0, np.float32(1e6), blocks)
        parameters, samples = torch.from_numpy(some_parameters(SHAPE)), draw(SHAPE)
        found = [
            tuple(t.clone() for t in FusedGradient(SHAPE, b, weights, 30, 1)(parameters, *samples))
            for b in (blocks, spoilt)
        ]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_a_model_without_voxels_has_no_gradient(self):
        weights = np.zeros_like(some_weights(SHAPE))
        for make in (
            FusedGradient(SHAPE, some_blocks(SHAPE), weights, 30, 1),
            TorchGradient(SHAPE, some_blocks(SHAPE), weights, 30, "cpu"),
        ):
            loss, gradient = make(torch.from_numpy(some_parameters(SHAPE)), *draw(SHAPE))
            assert not loss.any()
            assert not gradient.any()

    @pytest.mark.parametrize("threads", [2, 3, 16])
    @pytest.mark.parametrize("masked", [False, True])
    def test_threads_do_not_change_a_bit(self, threads, masked):
        blocks = some_blocks(SHAPE, 3)
        weights = some_weights(SHAPE, 3) if masked else None
        parameters = torch.from_numpy(some_parameters(SHAPE, 3))
        alone = FusedGradient(SHAPE, blocks, weights, 30, 1)
        shared = FusedGradient(SHAPE, blocks, weights, 30, threads)
        for seed in range(3):
            expected, found = (
                [t.clone() for t in make(parameters, *draw(SHAPE, seed))]
                for make in (alone, shared)
            )
            for a, b in zip(expected, found, strict=True):
                assert torch.equal(a, b)
        shared.close()

    def test_models_do_not_influence_each_other(self):
        blocks, parameters = some_blocks(SHAPE, 3), torch.from_numpy(some_parameters(SHAPE, 3))
        together = FusedGradient(SHAPE, blocks, None, 30, 1)(parameters, *draw(SHAPE))
        for model in range(3):
            alone = FusedGradient(SHAPE, blocks[model, None], None, 30, 1)
            loss, gradient = alone(parameters[model, None].contiguous(), *draw(SHAPE))
            assert torch.equal(loss[0], together[0][model])
            assert torch.equal(gradient[0], together[1][model])


class TestInitialisation:
    @given(tree_shapes(), st.integers(0, 2**32 - 1))
    def test_draws_are_seeded_and_bounded(self, shape, seed):
        parameters = initial_parameters(shape, seed)
        assert parameters.dtype == np.float32
        assert parameters.shape == (shape.parameter_count,)
        np.testing.assert_array_equal(parameters, initial_parameters(shape, seed))
        assert np.isfinite(parameters).all()
        assert np.abs(parameters).max() <= max(1.0, math.pi / shape.w0, math.sqrt(6) / shape.w0)

    def test_activations_keep_their_spread(self):
        shape = TreeShape((24, 24, 24), (3, 3), uniform_widths((24, 24, 24), 2, (40, 40)), 15.0)
        tree = TorchTree(shape, "cpu")
        coordinates = torch.rand(8, 200, 3) * 2 - 1
        out = tree(torch.from_numpy(initial_parameters(shape, 0))[None], coordinates)
        assert 0.02 < float(out.std()) < 1


class TestRate:
    def term(self, volumes: int = 2) -> RateTerm:
        return RateTerm(torch.tensor([0] * 5 + [1] * 3 + [2] * 8), 3, volumes)

    def test_slopes_are_derivatives(self):
        torch.manual_seed(0)
        rate = self.term()
        weights = torch.randn(4, 2, 16, dtype=torch.float64) + 0.1
        steps = torch.rand(4, 3, dtype=torch.float64) * 0.3 + 0.05
        bits, by_magnitude, by_log_step = rate(weights, steps)
        leaf, log_steps = weights.clone().requires_grad_(), steps.log().requires_grad_()
        total, _, _ = rate(leaf, log_steps.exp())
        torch.testing.assert_close(total, bits)
        slopes = torch.autograd.grad(total.sum(), [leaf, log_steps])
        torch.testing.assert_close(slopes[0], weights.sign() * rate.spread(by_magnitude))
        torch.testing.assert_close(slopes[1], by_log_step)
        # And against plain differences.
        for chunk, tensor in ((0, 0), (3, 2)):
            moved = log_steps.detach().clone()
            moved[chunk, tensor] += 1e-6
            change = (rate(weights, moved.exp())[0] - bits)[chunk] / 1e-6
            assert float(change) == pytest.approx(float(by_log_step[chunk, tensor]), rel=1e-4)

    def test_rate_falls_with_the_step_and_grows_with_the_weights(self):
        rate = self.term(1)
        weights, steps = torch.ones(1, 1, 16), torch.full((1, 3), 0.1)
        bits = rate(weights, steps)[0]
        assert rate(weights, 2 * steps)[0] < bits < rate(2 * weights, steps)[0]
        assert (rate(weights, steps)[2] < 0).all()
        assert (rate(weights, steps)[1] > 0).all()

    def test_sums_and_spreads(self):
        rate = self.term(2)
        values = torch.arange(32.0).reshape(1, 2, 16)
        sums = rate.sum_by_tensor(values)
        assert sums.tolist() == [[10 + 90, 18 + 66, 92 + 220]]
        assert rate.spread(torch.tensor([[1.0, 2.0, 3.0]])).flatten().tolist() == (
            [1.0] * 5 + [2.0] * 3 + [3.0] * 8
        )
        assert rate.counts.tolist() == [10, 6, 16]


class TestPlan:
    def test_effort_scales_the_steps(self):
        assert len(STEPS_BY_EFFORT) == MAX_EFFORT + 1
        assert all(a < b for a, b in pairwise(STEPS_BY_EFFORT))
        for effort, steps in enumerate(STEPS_BY_EFFORT):
            plan = fit_plan(SHAPE, EncodingParams(ratio=2, effort=effort))
            assert plan.steps == steps

    def test_seed_and_pruning_go_through(self):
        plan = fit_plan(SHAPE, EncodingParams(ratio=2, seed=77, pruning="dynamic"))
        assert (plan.seed, plan.pruning) == (77, "dynamic")
        assert fit_plan(SHAPE, EncodingParams(ratio=2)).pruning in ("none", "iterative", "dynamic")

    def test_samples_suit_the_leaf(self):
        for size in (8, 40, 128):
            shape = TreeShape((size,) * 3, (1,), ((3,),), 1.0)
            assert 1 <= fit_plan(shape, EncodingParams(ratio=2)).samples <= max(64, size**3)


def target_blocks(chunks: int, volumes: int = 1) -> np.ndarray:
    rng = np.random.default_rng(4)
    base = smooth_volume(SHAPE.grid) / 50 - 1
    values = base + 0.3 * rng.standard_normal((chunks, volumes, 1, 1, 1)) * np.sin(base * 3)
    flat = values.astype(np.float32).reshape(-1, *SHAPE.grid)
    return blocks_of(SHAPE, flat).reshape(chunks, volumes, SHAPE.leaf_count, -1)


def train(
    blocks: np.ndarray, weights: np.ndarray | None = None, threads: int = 1, **changes
) -> tuple[np.ndarray, np.ndarray]:
    plan = fit_plan(SHAPE, EncodingParams(ratio=2, effort=0))
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    plan = FitPlan(**{**fields, "steps": 60, "samples": 24, **changes})
    bits = np.linspace(900, 1500, len(blocks))
    result = Trainer(SHAPE, blocks, weights, bits, plan, "cpu", threads).run()
    return result.parameters, result.codes


@pytest.mark.parametrize("masked", [False, True])
def test_leaf_variances_are_the_errors_of_the_leaves_means(masked):
    rng = np.random.default_rng(3)
    blocks = rng.standard_normal((3, 2, 4, 50)).astype(np.float32)
    weights = rng.integers(0, 2, blocks.shape).astype(np.uint8) if masked else None
    kept = np.ones(blocks.shape, bool) if weights is None else weights == 1
    errors = np.zeros(3)
    for place in np.ndindex(blocks.shape[:3]):
        leaf = blocks[place][kept[place]].astype(np.float64)
        errors[place[0]] += np.square(leaf - leaf.mean()).sum()
    expected = errors / kept.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(leaf_variances(blocks, weights), expected, rtol=1e-5)


class TestTraining:
    @pytest.mark.parametrize("volumes", [1, 2])
    @pytest.mark.parametrize("pruning", ["none", "iterative", "dynamic"])
    def test_a_fit_does_not_depend_on_its_batch(self, volumes, pruning):
        blocks = target_blocks(5, volumes)
        bits = np.linspace(900, 1500, 5)
        plan = FitPlan(steps=60, samples=24, learning_rate=0.01, pruning=pruning)
        together = Trainer(SHAPE, blocks, None, bits, plan, "cpu", 1).run()
        for chosen in ([0], [4], [1, 3], [2, 0, 4]):
            alone = Trainer(SHAPE, blocks[chosen], None, bits[chosen], plan, "cpu", 1).run()
            np.testing.assert_array_equal(alone.parameters, together.parameters[chosen])
            np.testing.assert_array_equal(alone.codes, together.codes[chosen])

    @pytest.mark.parametrize("before", ["_start_steps", "_calibrate"])
    def test_a_chunk_that_runs_away_is_taken_back(self, before, monkeypatch):
        """While weights are exact and while they are noisy; its neighbour does not notice."""
        blocks, bits = target_blocks(2), np.array([1200.0, 1200.0])
        plan = FitPlan(steps=1000, samples=24, learning_rate=0.01, pruning="none")
        calm = Trainer(SHAPE, blocks, None, bits, plan, "cpu", 1)
        undisturbed = calm.run()
        plain, shocks = getattr(Trainer, before), []

        def shock(trainer):
            plain(trainer)
            if not shocks:
                shocks.append(before)
                trainer._p[0] *= 12

        monkeypatch.setattr(Trainer, before, shock)
        trainer = Trainer(SHAPE, blocks, None, bits, plan, "cpu", 1)
        disturbed = trainer.run()
        assert shocks
        assert trainer._pace[0] < 1 == trainer._pace[1]
        assert trainer._mse[0] < (calm._mse[0] + calm._variance[0]) / 2
        np.testing.assert_array_equal(disturbed.parameters[1], undisturbed.parameters[1])

    def test_a_mask_of_ones_changes_nothing(self):
        blocks = target_blocks(2)
        plain = train(blocks)
        masked = train(blocks, np.ones(blocks.shape, np.uint8) * (np.arange(blocks.shape[-1])
                       < SHAPE.leaf_extents.prod(axis=1)[:, None]))  # fmt: skip
        np.testing.assert_array_equal(plain[0], masked[0])
        np.testing.assert_array_equal(plain[1], masked[1])

    @pytest.mark.parametrize("threads", [2, 5])
    def test_threads_do_not_change_a_fit(self, threads):
        blocks = target_blocks(2)
        alone, shared = train(blocks), train(blocks, threads=threads)
        np.testing.assert_array_equal(alone[0], shared[0])
        np.testing.assert_array_equal(alone[1], shared[1])

    def test_torch_threads_do_not_change_a_fit(self):
        blocks = target_blocks(3)
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(train(blocks))
        finally:
            torch.set_num_threads(before)
        np.testing.assert_array_equal(found[0][0], found[1][0])

    def test_seeds_matter(self):
        blocks = target_blocks(1)
        assert not np.array_equal(train(blocks, seed=1)[0], train(blocks, seed=2)[0])
        np.testing.assert_array_equal(train(blocks, seed=1)[0], train(blocks, seed=1)[0])

    def test_no_global_state_is_touched(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        train(target_blocks(1))
        assert torch.equal(torch.rand(3), expected)
        np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
        assert torch.is_grad_enabled()

    def test_training_lowers_the_error(self):
        blocks = target_blocks(1)
        parameters, codes = train(blocks, steps=300)
        used = np.arange(blocks.shape[-1]) < SHAPE.leaf_extents.prod(axis=1)[:, None]
        gradient = FusedGradient(SHAPE, blocks[0], None, 10**6, 1)
        loss, _ = gradient(torch.from_numpy(parameters[0]), *draw(SHAPE))
        assert float(loss[0]) < 0.3 * float(blocks[0, 0][used].var())
        assert codes.shape == (1, len(SHAPE.tensors))
        assert ((codes >= 0) & (codes <= 255)).all()

    @pytest.mark.parametrize("kind", ["iterative", "dynamic"])
    def test_pruned_weights_end_at_zero(self, kind):
        blocks = target_blocks(2)
        parameters, _ = train(blocks, pruning=kind, steps=80)
        share = (parameters == 0).mean(axis=(1, 2))
        assert (share > 0.05).all()
        assert (share < 0.95).all()
        assert (train(blocks, pruning="none", steps=80)[0] != 0).mean() > 0.99

    def test_values_that_cannot_be_learnt_stay_finite(self):
        rng = np.random.default_rng(0)
        blocks = 1e3 * rng.standard_normal((1, 1, SHAPE.leaf_count, math.prod(SHAPE.leaf_size)))
        parameters, _ = train(blocks.astype(np.float32))
        assert np.isfinite(parameters).all()

    def test_tensors_split_by_volume(self):
        parameters = np.arange(2 * SHAPE.parameter_count, dtype=np.float32).reshape(2, -1)
        tensors = tensors_of(SHAPE, parameters)
        assert sum(len(tensor) for tensor in tensors) == parameters.size
        first = SHAPE.tensors[0]
        np.testing.assert_array_equal(
            tensors[0], parameters[:, first.start : first.stop].reshape(-1)
        )


@pytest.fixture
def short_fits(monkeypatch):
    """Fits of 30 steps, whatever the effort."""
    monkeypatch.setattr(plan_module, "STEPS_BY_EFFORT", (30,) * (MAX_EFFORT + 1))


def sections_of(volumes: list[np.ndarray], limits: list[int], **changes) -> list[bytes]:
    chosen = EncodingParams(ratio=2, **changes)
    return encode_trees(volumes, [None] * len(volumes), limits, chosen, "cpu", 1)


@pytest.mark.usefixtures("short_fits")
class TestEncoder:
    @pytest.mark.parametrize("node_split", ["equal", "aoi", "variance"])
    @pytest.mark.parametrize("limit", [0, 1, 2, 10, 60, 400, 3000])
    def test_sections_fit_their_limits(self, node_split, limit):
        shape = (1, 9, 16, 12)
        volume = ((smooth_volume(shape[1:]) - 10) / 100)[None].astype(np.float32)
        volume[:, :4] **= 8
        room = smallest_section(shape) + limit
        (body,) = sections_of([volume], [room], node_split=node_split)
        assert len(body) <= room
        section = read_tree(body, shape[1:], 1)
        parameters = tree_parameters(section, 1)
        assert np.isfinite(parameters).all()
        if limit >= 400:
            assert len(body) >= 0.9 * room

    @pytest.mark.parametrize("node_split", ["aoi", "variance"])
    @pytest.mark.parametrize("levels", [2, 3, 4])
    def test_unequal_nodes_never_break_a_limit(self, node_split, levels):
        rng = np.random.default_rng(0)
        volume = rng.random((1, 17, 32, 16), dtype=np.float32) ** 6
        layers = 1
        for limit in (100, 250, 300, 400, 700):
            (body,) = sections_of(
                [volume], [limit], node_split=node_split, levels=levels, layers=layers
            )
            assert len(body) <= limit

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 1, 1, 9), (2, 3, 1, 2), (1, 5, 5, 5)])
    def test_the_smallest_section_is_possible(self, shape, seed):
        rng = np.random.default_rng(seed)
        volume = rng.random(shape, dtype=np.float32)
        for extra in range(4):
            room = smallest_section(shape) + extra
            (body,) = sections_of([volume], [room], seed=seed)
            assert len(body) <= room

    def test_chunks_in_any_company_have_the_same_bytes(self):
        rng = np.random.default_rng(0)
        volumes = [rng.random((1, 8, 8, 8), dtype=np.float32) for _ in range(3)]
        volumes.append(rng.random((2, 8, 9, 8), dtype=np.float32))
        limits = [300, 300, 420, 500]
        together = sections_of(volumes, limits)
        for volume, limit, body in zip(volumes, limits, together, strict=True):
            assert sections_of([volume], [limit]) == [body]

    def test_a_mask_in_the_batch_does_not_change_the_others(self):
        rng = np.random.default_rng(0)
        volumes = [rng.random((1, 8, 8, 8), dtype=np.float32) for _ in range(2)]
        classes = [None, (rng.random((8, 8, 8)) < 0.3).astype(np.uint8)]
        chosen = EncodingParams(ratio=2)
        both = encode_trees(volumes, classes, [300, 300], chosen, "cpu", 1)
        for i in range(2):
            alone = encode_trees([volumes[i]], [classes[i]], [300], chosen, "cpu", 1)
            assert alone == [both[i]]

    def test_large_batches_are_cut(self, monkeypatch):
        rng = np.random.default_rng(0)
        volumes = [rng.random((1, 8, 8, 8), dtype=np.float32) for _ in range(3)]
        whole = sections_of(volumes, [300] * 3)
        monkeypatch.setattr("tinc_codec.fit.encoder._BATCH_VOXELS", 600)
        assert sections_of(volumes, [300] * 3) == whole

    def test_a_constant_volume_in_a_batch_is_its_offset(self):
        volume = np.zeros((2, 8, 8, 8), np.float32)
        volume[0] = 0.25
        volume[1] = smooth_volume((8, 8, 8)) / 110
        (body,) = sections_of([volume], [600])
        section = read_tree(body, (8, 8, 8), 2)
        assert section.gains[0] == 0
        assert section.offsets[0] == 0.25
        assert np.isfinite(tree_parameters(section, 2)).all()

    def test_steps_of_the_stream_are_those_of_the_fit(self):
        volume = (smooth_volume((9, 9, 9))[None] / 110).astype(np.float32)
        (body,) = sections_of([volume], [500])
        section = read_tree(body, (9, 9, 9), 1)
        parameters = tree_parameters(section, 1)[0]
        for tensor, code in zip(section.shape.tensors, section.step_codes, strict=True):
            symbols = parameters[tensor.start : tensor.stop] / np.float32(q_step(code))
            np.testing.assert_allclose(symbols, np.rint(symbols), atol=1e-3)
