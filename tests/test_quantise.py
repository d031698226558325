"""The quantise room: steps, symbols, the search for a budget, pruning."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree_reference import step_of
from tinc_codec.entropy.weights import MAX_MAGNITUDE, choose_model
from tinc_codec.quantise.prune import ROUNDS, PruningSchedule, prune_smallest
from tinc_codec.quantise.scalar import (
    MAX_STEP_CODE,
    dequantise,
    q_step,
    quantise,
    step_codes,
)
from tinc_codec.quantise.search import StepSearch

codes = st.integers(0, MAX_STEP_CODE)


class TestSteps:
    def test_steps_are_those_of_the_format(self):
        steps = [q_step(code) for code in range(MAX_STEP_CODE + 1)]
        assert steps == [step_of(code) for code in range(MAX_STEP_CODE + 1)]
        assert steps == [float(np.float32(step)) for step in steps]
        assert steps[0] == 1.0
        assert steps[16] == 0.5
        assert steps[240] == 2.0**-15
        assert all(a > b for a, b in pairwise(steps))

    @given(codes)
    def test_a_step_rounds_to_its_own_code(self, code):
        assert step_codes(np.array([math.log(q_step(code))])).tolist() == [code]

    @given(st.floats(-30, 10))
    def test_codes_stay_in_range_and_near(self, log_step):
        (code,) = step_codes(np.array([log_step]))
        assert 0 <= code <= MAX_STEP_CODE
        if q_step(MAX_STEP_CODE) < math.exp(log_step) < 1:
            assert abs(math.log2(q_step(int(code))) - log_step / math.log(2)) <= 1 / 32 + 1e-6


class TestRounding:
    @given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=50), codes)
    def test_error_is_at_most_half_a_step(self, weights, code):
        array = np.array(weights, dtype=np.float32)
        symbols = quantise(array, q_step(code))
        assert symbols.dtype == np.int32
        assert np.abs(symbols).max() <= MAX_MAGNITUDE
        back = dequantise(symbols, q_step(code))
        assert back.dtype == np.float32
        kept = np.abs(symbols) < MAX_MAGNITUDE
        error = np.abs(back.astype("f8") - array)[kept]
        assert (error <= q_step(code) * 0.5 * (1 + 1e-2)).all()

    def test_large_weights_are_clipped_to_the_format(self):
        symbols = quantise(np.array([1e9, -1e9, 3e30], dtype=np.float32), q_step(255))
        assert symbols.tolist() == [MAX_MAGNITUDE, -MAX_MAGNITUDE, MAX_MAGNITUDE]

    @given(st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE), codes)
    def test_symbols_survive(self, symbol, code):
        array = np.array([symbol], dtype=np.int32)
        assert quantise(dequantise(array, q_step(code)), q_step(code)).tolist() == [symbol]


def some_tensors(seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng(seed)
    scales = [0.02, 0.3, 1.0, 0.1]
    tensors = [
        (rng.standard_normal(n) * s).astype(np.float32)
        for n, s in zip([40, 300, 7, 120], scales, strict=True)
    ]
    return tensors, [112, 60, 40, 80]


def is_finest(search: StepSearch, position: int) -> bool:
    """Tell whether no tensor's step can get any finer."""
    here, far = search.at(position), search.at(position - 10_000)
    return [tensor.step_code for tensor in here] == [tensor.step_code for tensor in far]


class TestSearch:
    @given(st.floats(0, 4000), st.integers(0, 5))
    @settings(max_examples=25)
    def test_finest_position_fits_and_the_next_finer_does_not(self, budget, seed):
        tensors, start = some_tensors(seed)
        search = StepSearch(tensors, start)
        position = search.finest_within(budget)
        if position is None:
            # Even with a step of 1 everywhere it is too long.
            coarsest = [choose_model(quantise(t, 1.0))[1] for t in tensors]
            assert sum(coarsest) > budget
            return
        assert search.bits_at(position) <= budget
        assert search.bits_at(position - 1) > budget or is_finest(search, position)

    def test_position_zero_is_the_fits_own(self):
        tensors, start = some_tensors()
        found = StepSearch(tensors, start).at(0)
        assert [tensor.step_code for tensor in found] == start
        for tensor, weights in zip(found, tensors, strict=True):
            np.testing.assert_array_equal(
                tensor.symbols, quantise(weights, q_step(tensor.step_code))
            )
            assert (tensor.model, tensor.bits) == choose_model(tensor.symbols)

    @given(st.integers(-100, 900))
    @settings(max_examples=40)
    def test_each_position_coarsens_one_tensor_by_one_code(self, position):
        tensors, start = some_tensors()
        search = StepSearch(tensors, start)
        here, after = search.at(position), search.at(position + 1)
        changes = [a.step_code - b.step_code for a, b in zip(here, after, strict=True)]
        assert sorted(changes) in ([0, 0, 0, 0], [0, 0, 0, 1])
        assert all(0 <= tensor.step_code <= MAX_STEP_CODE for tensor in here)

    def test_a_budget_of_nothing_rounds_small_weights_away(self):
        tensors = [np.full(5, 0.3, np.float32), np.zeros(3, np.float32)]
        search = StepSearch(tensors, [90, 90])
        position = search.finest_within(0.0)
        assert position is not None
        assert all(not tensor.symbols.any() for tensor in search.at(position))

    def test_symbols_never_get_larger_than_is_useful(self):
        tensors, start = some_tensors()
        search = StepSearch(tensors, start)
        for position in (-100_000, -400, 0):
            for tensor in search.at(position):
                assert np.abs(tensor.symbols).max() <= 4300
        position = search.finest_within(1e9)
        assert position is not None
        assert is_finest(search, position)

    def test_all_weights_can_be_dropped(self):
        tensors, start = [np.full(5, 1e6, np.float32), np.ones(3, np.float32)], [90, 90]
        search = StepSearch(tensors, start)
        assert search.finest_within(0.0) is None
        zeros = search.zeros()
        assert [tensor.symbols.tolist() for tensor in zeros] == [[0] * 5, [0] * 3]
        assert sum(tensor.bits for tensor in zeros) == 0

    def test_a_tensor_of_zeros_costs_nothing(self):
        search = StepSearch([np.zeros(100, np.float32)], [50])
        position = search.finest_within(0.0)
        assert position is not None
        assert search.bits_at(position) == 0.0


class TestPruning:
    @given(st.integers(0, 99), st.floats(0, 1))
    def test_the_smallest_go(self, seed, share):
        rng = np.random.default_rng(seed)
        keep = torch.from_numpy(rng.random((2, 3, 20)) < 0.8)
        magnitude = torch.from_numpy(rng.permutation(120).reshape(2, 3, 20).astype(np.float32))
        shares = torch.tensor([share, 0.0])
        after = prune_smallest(keep, magnitude, shares)
        assert after.shape == keep.shape
        assert not (after & ~keep).any()
        dropped = keep & ~after
        expected = int(torch.tensor(share) * keep[0].sum())
        assert int(dropped[0].sum()) == expected
        assert not dropped[1].any()
        if expected and after[0].any():
            assert magnitude[0][dropped[0]].max() < magnitude[0][after[0]].min()

    def test_chunks_are_pruned_apart(self):
        keep = torch.ones(2, 1, 10, dtype=torch.bool)
        magnitude = torch.arange(20.0).reshape(2, 1, 10)
        after = prune_smallest(keep, magnitude, torch.tensor([0.5, 0.2]))
        assert after.sum(dim=2).flatten().tolist() == [5, 8]
        assert after[0, 0].tolist() == [False] * 5 + [True] * 5
        together = prune_smallest(keep[:1], magnitude[:1], torch.tensor([0.5]))
        assert torch.equal(together[0], after[0])

    def test_iterative_prunes_the_same_share_each_round(self):
        schedule = PruningSchedule("iterative")
        first = schedule.shares(torch.tensor([20.0, 30.0]))
        for psnr in (10.0, 30.0, 5.0):
            again = schedule.shares(torch.tensor([psnr, psnr]))
            torch.testing.assert_close(again, first)
        assert (first > 0).all()
        assert ROUNDS >= 2

    def test_dynamic_follows_the_psnr_of_each_chunk(self):
        schedule = PruningSchedule("dynamic")
        first = schedule.shares(torch.tensor([20.0, 20.0]))
        second = schedule.shares(torch.tensor([20.5, 15.0]))
        assert second[0] > first[0]
        assert second[1] < first[1]
        # Half a dB lost against the best so far, which stays the mark.
        third = schedule.shares(torch.tensor([20.0, 20.0]))
        assert third[0] < second[0]
        assert third[1] > second[1]

    def test_dynamic_never_prunes_more_than_half(self):
        schedule = PruningSchedule("dynamic")
        for step in range(30):
            shares = schedule.shares(torch.tensor([20.0 + step]))
            assert 0 < float(shares) <= 0.5


@pytest.mark.parametrize("kind", ["iterative", "dynamic"])
def test_the_schedule_is_kept_per_fit(kind):
    one, other = PruningSchedule(kind), PruningSchedule(kind)
    one.shares(torch.tensor([20.0]))
    one.shares(torch.tensor([25.0]))
    first = other.shares(torch.tensor([20.0]))
    torch.testing.assert_close(first, PruningSchedule(kind).shares(torch.tensor([1.0])))
