"""Which layer holds the edit."""

import pytest

from mobiedit.export.edit_layer import predict_layer
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.manifest import ModelShape


def shape(n_layers: int) -> ModelShape:
    return ModelShape(
        n_layers=n_layers,
        width=64,
        mlp_width=128,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        vocabulary=600,
        context=256,
        tied_head=True,
    )


@pytest.mark.parametrize(("n_layers", "layer"), [(30, 10), (16, 6), (4, 1), (3, 1), (2, 0)])
def test_layer_is_at_a_third_when_none_is_wanted(n_layers: int, layer: int) -> None:
    assert predict_layer(shape(n_layers), None) == layer


def test_layer_has_one_behind_it_when_none_is_wanted() -> None:
    assert all(0 <= predict_layer(shape(n_layers), None) <= n_layers - 2 for n_layers in range(2, 200))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_the_wanted_one_when_the_model_has_it(layer: int) -> None:
    assert predict_layer(shape(4), layer) == layer


@pytest.mark.parametrize("layer", [-1, 3, 4, 99])
def test_layer_is_refused_when_out_of_range(layer: int) -> None:
    with pytest.raises(RequestError, match=rf"^--layer {layer} is not in the model: give 0 to 2, or auto$"):
        predict_layer(shape(4), layer)


@pytest.mark.parametrize("wanted", [None, 0])
def test_layer_is_refused_when_the_model_has_a_single_one(wanted: int | None) -> None:
    with pytest.raises(RequestError, match="single layer"):
        predict_layer(shape(1), wanted)
