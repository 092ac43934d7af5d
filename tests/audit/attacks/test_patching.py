"""Unlearning depth: the identities that define it, and patching by hand."""

import copy

import numpy as np
import pytest
import torch
from cases import image_rows, text_rows
from scipy.special import log_softmax
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_unlearn.audit import score
from hf_unlearn.audit.attacks.patching import patching_depth
from hf_unlearn.audit.table import streaming
from hf_unlearn.data import encode


EXAMPLES = [*text_rows(5), "Ada lives in Paris.", "", *text_rows(3, 40)]
TOKENIZER = tiny_tokenizer()
BUILD = {
    "llama": lambda seed: tiny_llama(num_hidden_layers=3, seed=seed).double(),
    "gpt2": lambda seed: tiny_gpt2(n_layer=3, seed=seed).double(),
    "vit": lambda seed: tiny_vit(seed=seed).double(),
}


def case(kind):
    """Three models, what processes their records, and the records."""
    rows = (None, image_rows(6)) if kind == "vit" else (TOKENIZER, EXAMPLES)
    return *(BUILD[kind](seed) for seed in range(3)), *rows


@pytest.mark.parametrize("kind", BUILD)
def test_the_original_is_0_and_the_retrained_model_1(kind):
    original, unlearned, retrained, processor, rows = case(kind)
    intact = patching_depth(original, original, retrained, processor, rows)
    counted = (intact.drop_retrained > 0.05).any(axis=0)
    assert counted.sum() >= 3
    assert (intact.drop_unlearned[:, counted] == 0).all()
    assert (intact.depth[counted] == 0).all() and np.isnan(intact.depth[~counted]).all()
    deep = patching_depth(original, retrained, retrained, processor, rows)
    assert (deep.depth[counted] == 1).all() and np.isnan(deep.depth[~counted]).all()
    between = patching_depth(original, unlearned, retrained, processor, rows)
    np.testing.assert_array_equal(between.drop_retrained, deep.drop_retrained)
    assert ((between.depth[counted] >= 0) & (between.depth[counted] <= 1)).all()
    np.testing.assert_array_equal(np.isnan(between.depth), ~counted)
    # A retrained model that is the original takes nothing, so that nothing can be measured.
    assert np.isnan(patching_depth(original, unlearned, original, processor, rows).depth).all()


def test_by_hand_on_unpadded_rows():
    original, unlearned, retrained, processor, rows = case("gpt2")
    found = patching_depth(original, unlearned, retrained, processor, rows, batch_size=16)
    for i, row in enumerate(rows):
        if row == "":
            assert np.isnan(found.depth[i])
            continue
        encoded = encode(row, processor)
        ids, labels = torch.tensor([encoded["input_ids"]]), np.array(encoded["labels"])
        places = np.flatnonzero(labels[1:] != -100)

        def mean_log_prob(logits, places=places, labels=labels):
            lp = log_softmax(logits[0].numpy()[places], axis=-1)
            return lp[np.arange(len(places)), labels[places + 1]].mean()

        drops = np.zeros((2, 3))
        with torch.no_grad():
            base = mean_log_prob(original(input_ids=ids).logits)
            for k, source in enumerate((unlearned, retrained)):
                states = source.transformer(input_ids=ids, output_hidden_states=True).hidden_states
                for layer in range(3):
                    # The rest of the network by hand; the last of the states has gone through the norm.
                    hidden = original.transformer(input_ids=ids, output_hidden_states=True).hidden_states
                    if layer < 2:
                        hidden = hidden[layer + 1].clone()
                        hidden[0, places] = states[layer + 1][0, places]
                        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, dtype=torch.float64).triu(1)[
                            None, None
                        ]
                        for block in original.transformer.h[layer + 1 :]:
                            hidden = block(hidden, attention_mask=mask)
                            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                        logits = original.lm_head(original.transformer.ln_f(hidden))
                    else:
                        # What the norm of the source did is undone.
                        norm = source.transformer.ln_f
                        logits = original.lm_head(original.transformer.ln_f((states[-1] - norm.bias) / norm.weight))
                    drops[k, layer] = base - mean_log_prob(logits)
        np.testing.assert_allclose(found.drop_unlearned[:2, i], drops[0, :2], atol=1e-9)
        np.testing.assert_allclose(found.drop_retrained[:2, i], drops[1, :2], atol=1e-9)
        np.testing.assert_allclose(found.drop_retrained[2, i], drops[1, 2], atol=1e-3)  # epsilon of the norm
        u, r = found.drop_unlearned[:, i], found.drop_retrained[:, i]
        total = sum(r_l * min(max(u_l / r_l, 0), 1) for u_l, r_l in zip(u, r, strict=True) if r_l > 0.05)
        weight = sum(r_l for r_l in r if r_l > 0.05)
        np.testing.assert_allclose(found.depth[i], total / weight if weight else np.nan)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batch_size_and_parts_change_nothing(kind, monkeypatch):
    *models, processor, rows = case(kind)
    whole = patching_depth(*models, processor, rows, batch_size=16)
    one = patching_depth(*models, processor, rows, batch_size=1)
    monkeypatch.setattr(streaming, "max_logits", lambda device: 5 * 320)
    parts = patching_depth(*models, processor, rows, batch_size=16)
    for other in (one, parts):
        np.testing.assert_allclose(other.drop_unlearned, whole.drop_unlearned, atol=1e-11)
        np.testing.assert_allclose(other.depth, whole.depth, atol=1e-9)


def test_models_stay_as_they_are():
    models = [BUILD["llama"](seed).train() for seed in range(3)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    patching_depth(*models, TOKENIZER, EXAMPLES[:2])
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_models_of_other_shapes():
    with pytest.raises(ValueError, match="have 3, 3, 2 blocks of width 32, 32, 32"):
        patching_depth(BUILD["llama"](0), BUILD["llama"](1), tiny_llama().double(), TOKENIZER, EXAMPLES)


WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2]}
IMAGE_MODELS = {
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
    "convnext": lambda: ConvNextForImageClassification(ConvNextConfig(num_stages=2, image_size=16, **STAGES)),
    "beit": lambda: BeitForImageClassification(BeitConfig(intermediate_size=32, **WIDE)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**WIDE)),
}


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_depth_where_the_head_reads_more_than_a_class_token(kind):
    """With the last state of another model, the original answers as that one, if their heads are the same."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = IMAGE_MODELS[kind]().eval()
        with torch.no_grad():
            list(model.classifier.modules())[-1].weight.mul_(30)
        models.append(model)
    original, retrained = models
    retrained.classifier.load_state_dict(original.classifier.state_dict())
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i in range(6)]
    found = patching_depth(original, retrained, retrained, None, rows, batch_size=4)
    np.testing.assert_array_equal(found.drop_unlearned, found.drop_retrained)
    own, other = (score(model, None, rows, sampling=()).log_prob for model in models)
    np.testing.assert_allclose(found.drop_retrained[-1], own - other, rtol=0, atol=2e-4)
    assert (np.abs(own - other) > 1e-3).all()
    kept = patching_depth(original, original, retrained, None, rows, batch_size=4)
    assert not kept.drop_unlearned.any()
