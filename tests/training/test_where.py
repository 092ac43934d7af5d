import pytest
from tiny import tiny_gpt2, tiny_llama, tiny_vit

from hf_unlearn.models.blocks import layers_of
from hf_unlearn.training.where import freeze_except


@pytest.mark.parametrize("model", [tiny_llama(), tiny_gpt2(), tiny_vit()], ids=["llama", "gpt2", "vit"])
def test_layers_of_every_kind_of_model(model):
    names = freeze_except(model, layers=[-1])
    assert names and {layers_of(model)[name] for name in names} == {1}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(names)


def test_pattern_must_match_the_whole_name():
    model = tiny_llama()
    assert freeze_except(model, pattern=r".*down_proj\.weight") == [
        f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)
    ]
    with pytest.raises(ValueError, match="no parameter that could move is selected"):
        freeze_except(tiny_llama(), pattern="down_proj")


def test_pattern_and_layers_must_both_hold():
    assert freeze_except(tiny_llama(), r".*o_proj\.weight", [0]) == ["model.layers.0.self_attn.o_proj.weight"]


def test_frozen_before_stays_frozen():
    model = tiny_llama()
    model.lm_head.weight.requires_grad_(False)
    assert "lm_head.weight" not in freeze_except(model)
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize("layers", [[2], [-3], [0, 9]])
def test_a_layer_that_does_not_exist(layers):
    with pytest.raises(ValueError, match="the model has 2 layers"):
        freeze_except(tiny_llama(), layers=layers)


def test_everything_frozen():
    model = tiny_llama().requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable=True"):
        freeze_except(model)


def test_a_tied_weight_is_one_parameter():
    assert "lm_head.weight" not in freeze_except(tiny_llama(tie_word_embeddings=True))
