import json
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinc_codec.errors import ConfigError
from tinc_codec.params import EncodingParams


@st.composite
def params(draw):
    levels = draw(st.one_of(st.just("auto"), st.integers(1, 6)))
    layers = st.one_of(st.just("auto"), st.integers(1, 8))
    level_split = st.just("auto")
    if levels != "auto":
        layers = st.one_of(layers, st.lists(st.integers(1, 8), min_size=levels, max_size=levels))
        shares = st.floats(1e-300, 1e300)
        level_split = st.one_of(level_split, st.lists(shares, min_size=levels, max_size=levels))
    target = draw(
        st.one_of(
            st.tuples(st.just("ratio"), st.floats(1, 100_000, exclude_min=True)),
            st.tuples(st.just("psnr"), st.floats(0, 1e300, exclude_min=True)),
            st.tuples(st.just("max_error"), st.floats(0, 1e308)),
        )
    )
    model = draw(st.sampled_from(["auto", "tree"]))
    return EncodingParams(
        **dict([target]),
        model=model,
        effort=draw(st.integers(0, 9)),
        levels=levels,
        layers=draw(layers),
        level_split=draw(level_split),
        node_split=draw(st.sampled_from(["auto", "equal", "aoi", "variance"])),
        w0=draw(st.one_of(st.just("auto"), st.floats(0, 1000, exclude_min=True))),
        pruning=draw(st.sampled_from(["auto", "none", "iterative", "dynamic"])),
        tile="auto" if model == "tree" else draw(st.sampled_from(["auto", 16, 64, 65536])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(params())
def test_json_and_pickle_round_trips_are_exact(original):
    through_json = EncodingParams.from_config(json.loads(json.dumps(original.to_config())))
    assert through_json == original
    assert hash(through_json) == hash(original)
    assert pickle.loads(pickle.dumps(original)) == original


def test_config_holds_only_what_differs_from_the_defaults():
    assert EncodingParams(ratio=64).to_config() == {"ratio": 64}
    assert EncodingParams(psnr=45.5).to_config() == {"psnr": 45.5}
    assert EncodingParams(max_error=0).to_config() == {"max_error": 0}
    features = EncodingParams(ratio=64, model="features")
    assert features.to_config() == {"ratio": 64, "model": "features"}
    chosen = EncodingParams(ratio=64, levels=2, layers=[1, 2], level_split=[3, 1], seed=7)
    assert chosen.to_config() == {
        "ratio": 64,
        "levels": 2,
        "layers": [1, 2],
        "level_split": [3, 1],
        "seed": 7,
    }


def test_numpy_numbers_become_plain_ones():
    chosen = EncodingParams(
        ratio=np.float32(64),
        effort=np.uint8(3),
        levels=np.int64(2),
        layers=np.array([1, 2]),
        level_split=np.array([0.5, 0.25]),
        w0=np.float64(12),
        seed=np.uint32(2**32 - 1),
    )
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        entries = value if isinstance(value, tuple) else (value,)
        assert all(type(entry) in (int, float, str, type(None)) for entry in entries), field.name
    assert chosen == EncodingParams.from_config(json.loads(json.dumps(chosen.to_config())))


BAD = [
    ({}, "ratio, psnr, max_error; found none"),
    ({"ratio": 8, "psnr": 40}, "found ratio and psnr"),
    ({"psnr": 40, "max_error": 1}, "found psnr and max_error"),
    *(({"ratio": bad}, "ratio=") for bad in (1, 0, -8, 100_001, np.nan, np.inf, "64", True, [64])),
    ({"ratio": 10**400}, "ratio="),
    *(({"psnr": bad}, r"psnr=.* not a number > 0 and finite") for bad in (0, -1, np.nan, np.inf)),
    *(({"max_error": bad}, r"max_error=.* >= 0 and finite") for bad in (-1, np.nan, "1")),
    ({"ratio": 8, "psnr": 40, "max_error": 1}, "found ratio and psnr and max_error"),
    *(({"psnr": bad}, "psnr=") for bad in ("40", True, [40])),
    *(({"max_error": bad}, "max_error=") for bad in (-1e-300, np.inf, True, [0])),
    *(({"model": bad}, "model=.*auto, tree, features") for bad in ("Tree", "siren", None, True)),
    *(
        ({"model": "features", **setting}, rf'{name}=.* is a setting of trees, .*model="features"')
        for name, setting in {
            "levels": {"levels": 2, "level_split": [2, 1]},
            "layers": {"layers": 1},
            "node_split": {"node_split": "equal"},
            "w0": {"w0": 12},
            "pruning": {"pruning": "none"},
        }.items()
    ),
    *(({"effort": bad}, "effort=.*0 to 9") for bad in (-1, 10, 1.0, True, "4", None, np.bool_(1))),
    *(({"levels": bad}, 'levels=.*1 to 6 or "auto"') for bad in (0, 7, 2.0, True, "Auto", None)),
    *(({"layers": bad}, "layers=") for bad in (0, 9, 1.5, "two", None, True)),
    ({"layers": [1, 2]}, "levels must be an integer"),
    ({"layers": [1, 2], "levels": 3}, "layers=.* has 2 entries; levels=3 needs 3"),
    ({"layers": [1, 9], "levels": 2}, r"layers\[1\]=9"),
    ({"layers": [1, True], "levels": 2}, r"layers\[1\]=True"),
    ({"layers": b"\1\2", "levels": 2}, "layers="),
    *(({"level_split": bad, "levels": 2}, "level_split=") for bad in (0.5, "even", None, {1, 2})),
    ({"level_split": [1, 2]}, "levels must be an integer"),
    ({"level_split": [1, 2], "levels": 1}, "has 2 entries"),
    *(
        ({"level_split": [1, bad], "levels": 2}, r"level_split\[1\]=")
        for bad in (0, -1, np.nan, np.inf, "1", True)
    ),
    ({"level_split": [1e308, 1e308], "levels": 2}, "sum that is not finite"),
    *(({"node_split": bad}, "node_split=.*auto, equal, aoi, variance") for bad in ("AOI", None, 1)),
    *(({"w0": bad}, "w0=") for bad in (0, -1, 1000.1, np.nan, "fast", True, None)),
    *(({"pruning": bad}, "pruning=.*auto, none, iterative, dynamic") for bad in ("all", None)),
    *(({"seed": bad}, "seed=") for bad in (-1, 2**32, 0.0, True, None)),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_values_out_of_range_are_named(arguments, message):
    targets = {"ratio", "psnr", "max_error"}
    given_target = {} if not arguments or targets & set(arguments) else {"ratio": 64}
    with pytest.raises(ConfigError, match=message):
        EncodingParams(**given_target, **arguments)


def test_unknown_parameters_are_named():
    with pytest.raises(ConfigError, match="unknown parameter colour, level; known are ratio"):
        EncodingParams.from_config({"ratio": 64, "level": 1, "colour": "red"})


@pytest.mark.parametrize("config", [None, [("ratio", 8)], "ratio", 64])
def test_configuration_must_be_a_mapping(config):
    with pytest.raises(ConfigError, match="not a mapping"):
        EncodingParams.from_config(config)


def test_params_cannot_be_changed_and_take_no_positions():
    chosen = EncodingParams(ratio=64)
    with pytest.raises(FrozenInstanceError):
        chosen.ratio = 8
    with pytest.raises(TypeError):
        EncodingParams(64)
