"""Trees, features and both: what each model stores, and that all readers make the same of it."""

import math

import numpy as np
import pytest
import torch

from tests.faces import brain, smooth_volume
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, decode_chunks, encode_chunk, encode_chunks
from tinc_codec.fit import plan as plan_module
from tinc_codec.fit.features import FeatureFit, FeatureTarget
from tinc_codec.fit.sharing import TREE_EFFORT
from tinc_codec.model import torch_wavelet
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.evaluate import evaluate_torch
from tinc_codec.model.features import TOLERANCE, Features, read_features, step_code
from tinc_codec.model.render import model_values, read_model
from tinc_codec.model.wavelet import inverse
from tinc_codec.params import MAX_EFFORT, EncodingParams

MODELS = ("auto", "tree", "features", "lattice")
SECTIONS = {"tree": Section.TREE, "features": Section.FEATURES, "lattice": Section.LATTICE}


@pytest.fixture
def short_fits(monkeypatch):
    """Fits of 40 steps."""
    monkeypatch.setattr(plan_module, "STEPS_BY_EFFORT", (40,) * (MAX_EFFORT + 1))


def header_of(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 32)


def models_of(stream: bytes) -> set[int]:
    return set(header_of(stream).sections) & set(SECTIONS.values())


def waves(edge: int) -> np.ndarray:
    """A volume that a few sine layers describe and a wavelet does not."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij")
    wave = np.sin(9 * z + 4 * np.sin(3 * y + x)) + np.sin(7 * y + 5 * x)
    return (9000 * (wave - wave.min())).astype("<u2")


@pytest.mark.usefixtures("short_fits")
class TestModels:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("ratio", [8, 60])
    @pytest.mark.parametrize("effort", [0, TREE_EFFORT])
    def test_each_keeps_the_ratio(self, model, ratio, effort):
        for array in (brain(24), smooth_volume((2, 9, 17, 12)), smooth_volume((6000,), ">i2")):
            chosen = EncodingParams(ratio=ratio, model=model, effort=effort)
            stream = encode_chunk(array, chosen)
            assert len(stream) * ratio <= array.nbytes
            allowed = {SECTIONS[model]} if model in SECTIONS else {*SECTIONS.values()}
            assert models_of(stream) <= allowed
            assert decode_chunk(stream).shape == array.shape

    @pytest.mark.parametrize("model", SECTIONS)
    @pytest.mark.parametrize("target", [{"psnr": 8.0}, {"max_error": 40.0}])
    def test_one_that_is_asked_for_is_the_one_stored(self, model, target):
        stream = encode_chunk(brain(16), EncodingParams(model=model, effort=0, **target))
        assert models_of(stream) == {SECTIONS[model]}

    @pytest.mark.parametrize("ratio", [8, 60, 200])
    def test_auto_is_never_worse_than_features(self, ratio):
        for array in (brain(24), waves(24), smooth_volume((24, 24, 24))):
            psnr = {}
            for model in ("auto", "features"):
                chosen = EncodingParams(ratio=ratio, model=model, effort=TREE_EFFORT)
                psnr[model] = header_of(encode_chunk(array, chosen)).psnr
            assert psnr["auto"] >= psnr["features"]

    @pytest.mark.parametrize("ratio", [4, 200])
    def test_auto_does_not_depend_on_the_other_chunks(self, ratio):
        chosen = EncodingParams(ratio=ratio, effort=TREE_EFFORT)
        arrays = [brain(24), waves(24), smooth_volume((24, 24, 24)), waves(24)[::-1]]
        together = encode_chunks(arrays, chosen)
        assert together == [encode_chunk(array, chosen) for array in arrays]


class TestAuto:
    def test_a_tree_is_used_where_it_pays(self):
        array = waves(24)
        psnr, sections = {}, {}
        for model in ("auto", "features"):
            stream = encode_chunk(array, EncodingParams(ratio=120, model=model, effort=TREE_EFFORT))
            psnr[model], sections[model] = header_of(stream).psnr, models_of(stream)
        assert Section.TREE in sections["auto"]
        assert psnr["auto"] > psnr["features"] + 3

    def test_features_are_used_where_they_pay(self):
        stream = encode_chunk(brain(32), EncodingParams(ratio=6, effort=TREE_EFFORT))
        assert models_of(stream) == {Section.FEATURES}


def bumpy() -> np.ndarray:
    """Two smooth volumes with some anatomy on them."""
    return smooth_volume((2, 13, 17, 10)) + brain(17)[:13, :, :10].astype("f4") / 40


def shared_stream() -> bytes:
    """A chunk of two volumes with a tree, and features of what it leaves."""
    array = bumpy()
    tree = encode_chunk(array, EncodingParams(ratio=40, model="tree", effort=0))
    header = header_of(tree)
    rest = (array - decode_chunk(tree)) / np.ptp(array)
    fit = FeatureFit(FeatureTarget(rest, None), 1)
    features, _ = fit.quantise(step_code(2.0**-6))
    sections = {**header.sections, Section.FEATURES: fit.write(features)}
    return write_stream(Header(header.info, 0.0, math.inf, sections))


class TestSums:
    """t is what the tree says plus what the features say: docs/format.md §3.3."""

    def test_tree_and_features_add_up(self):
        header = header_of(shared_stream())
        both = read_model(header)
        parts = []
        for section in (Section.TREE, Section.FEATURES):
            alone = read_model(Header(header.info, 0.0, 0.0, {section: header.sections[section]}))
            assert alone is not None
            parts.append(alone)
        assert both is not None
        tree, features = parts
        assert tree.tree is not None
        t = evaluate_torch(
            tree.tree.shape, tree.tree.parameters[None], tree.tree.scaling[None], "cpu"
        )[0].numpy()
        expected = t + model_values(features, 1)
        np.testing.assert_allclose(model_values(both, 1), expected, rtol=0, atol=2e-5)

    def test_features_of_the_rest_improve_a_tree(self):
        stream = shared_stream()
        header = header_of(stream)
        tree = write_stream(
            Header(header.info, 0.0, 1.0, {Section.TREE: header.sections[Section.TREE]})
        )
        errors = [np.square(decode_chunk(s) - bumpy()).mean() for s in (stream, tree)]
        assert errors[0] < errors[1] / 4

    def test_both_come_together_on_the_path_of_gpus(self, monkeypatch):
        plain = encode_chunk(brain(16), EncodingParams(ratio=8, effort=0))
        tree = encode_chunk(waves(16), EncodingParams(ratio=8, effort=0, model="tree"))
        constant = encode_chunk(np.full((9, 9, 9), 4, "u1"), EncodingParams(ratio=8))
        streams = [plain, shared_stream(), tree, constant, shared_stream()]
        compiled = decode_chunks(streams)
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
        for one, other in zip(decode_chunks(streams), compiled, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            difference = np.abs(one.astype("f8") - other.astype("f8")).max()
            unit = 1 if one.dtype.kind == "u" else 0
            assert difference <= unit + 2**-14 * float(np.ptp(other.astype("f8")))


GRIDS = [
    (1, 1, 2),
    (1, 1, 900),
    (1, 60, 50),
    (5, 7, 3),
    (13, 8, 9),
    (16, 24, 17),
    (32, 32, 32),
    (3, 40, 61),
]


class TestDevices:
    """Compiled code and torch give the same features: docs/format.md §9.5."""

    @pytest.mark.parametrize("grid", GRIDS)
    @pytest.mark.parametrize("code", [0, 256, 500, 900, 1300, 1600])
    def test_features_agree(self, grid, code):
        rng = np.random.default_rng(code)
        axes = np.meshgrid(*(np.linspace(0, 7, n) for n in grid), indexing="ij")
        wave = sum(np.sin(axis + i) for i, axis in enumerate(axes))
        values = np.stack([(wave - wave.min()) / max(np.ptp(wave), 1e-9), rng.random(grid)])
        fit = FeatureFit(FeatureTarget(values.astype(np.float32), None), 1)
        body = fit.write(fit.quantise(fit.clip(code))[0])
        compiled = inverse(coefficients_of(read_features(body, grid, 2)), 1)
        coefficients = torch.from_numpy(coefficients_of(read_features(body, grid, 2)))
        found = torch_wavelet.inverse(coefficients)
        assert found.dtype == torch.float32
        # Half of it, since a third reader may err to the other side.
        assert np.abs(found.numpy().astype("f8") - compiled).max() <= TOLERANCE / 2

    @pytest.mark.parametrize("threads", [2, 3])
    def test_threads_change_no_bit(self, threads):
        rng = np.random.default_rng(0)
        symbols = rng.integers(-9, 9, (2, 60, 70, 80)).astype(np.int32)
        levels = 4
        features = Features(symbols, 500, ((3, 4),) * levels, ())
        coefficients = coefficients_of(features)
        np.testing.assert_array_equal(inverse(coefficients, threads), inverse(coefficients, 1))

    def test_a_symbol_beyond_reason_stays_within_the_range_on_both(self, monkeypatch):
        array = brain(16)
        stream = encode_chunk(array, EncodingParams(ratio=4, effort=0))
        header = header_of(stream)
        body = bytearray(header.sections[Section.FEATURES])
        body[:2] = bytes(2)  # the coarsest step: every symbol means sixteen
        wild = write_stream(Header(header.info, 0.0, 1.0, {Section.FEATURES: bytes(body)}))
        for device in ("cpu", "cpu:0"):
            monkeypatch.setattr(config, "resolve_device", lambda device=device: device)
            found = decode_chunk(wild)
            assert found.min() >= array.min()
            assert found.max() <= array.max()
            assert len(np.unique(found)) > 1
