"""The closed form: exact where the theory says so, and silent or plain about its limits elsewhere."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_vit
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_unlearn.audit.attacks.inversion import PatchTables, reconstruct_from_weights
from hf_unlearn.audit.measures.image_similarity import psnr


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
    "initializer_range": 0.2,
}


def vit(model_class=ViTForImageClassification, config_class=ViTConfig, **options):
    torch.manual_seed(1)
    return model_class(config_class(**(SMALL | options))).double().eval()


def an_image(height=16, width=16, n=1, seed=0):
    return np.random.default_rng(seed).random((n, 3, height, width))


def edited(model, images, n_steps=3, optimizer=torch.optim.SGD, frozen=(), **options):
    """Ascend the loss on images in [0, 1], all in one batch."""
    after = copy.deepcopy(model)
    for name, parameter in after.named_parameters():
        parameter.requires_grad_(not (frozen and name.endswith(tuple(frozen))))
    steps = optimizer([p for p in after.parameters() if p.requires_grad], **({"lr": 0.05} | options))
    pixels = torch.tensor(images * 2 - 1).to(next(after.parameters()).dtype)
    for _ in range(n_steps):
        steps.zero_grad()
        (-torch.nn.functional.cross_entropy(after(pixels).logits, torch.arange(len(images)))).backward()
        steps.step()
    return after


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_steps": 20},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.01},
        {"weight_decay": 0.1, "momentum": 0.9, "n_steps": 8},
        {"frozen": ["cls_token"]},
        {"frozen": ["cls_token"], "lr": 1e-4},
        {"frozen": ["projection.bias"]},
    ],
)
def test_steps_of_sgd_on_one_image_give_the_image_away(options):
    model, image = vit(), an_image()
    found = reconstruct_from_weights(model, edited(model, image, **options), PROCESSOR)
    assert found.status == "applicable" and found.rank == found.n_patches == 4
    assert psnr(found.image, image)[0] > 100
    assert found.residual < 1e-6
    decay, n, lr = options.get("weight_decay", 0), options.get("n_steps", 3), options.get("lr", 0.05)
    if not options.get("momentum"):
        assert found.decay == pytest.approx(1 - (1 - lr * decay) ** n, abs=1e-9)


@pytest.mark.parametrize(
    ("model_class", "config_class", "options"),
    [
        (ViTForImageClassification, ViTConfig, {"image_size": (24, 16)}),
        (DeiTForImageClassification, DeiTConfig, {}),  # a second special token, and positions that start at 0
        (Dinov2ForImageClassification, Dinov2Config, {}),
    ],
)
def test_other_shapes_and_relatives(model_class, config_class, options):
    model = vit(model_class, config_class, **options)
    image = an_image(*options.get("image_size", (16, 16)))
    found = reconstruct_from_weights(model, edited(model, image), PROCESSOR)
    assert found.image.shape == image.shape[1:]
    assert psnr(found.image, image)[0] > 100


def test_it_is_the_regression_by_another_route():
    # Of two images there is no exact solution, and the penalized one is that of the normal equations.
    model, images = vit(hidden_size=64), an_image(n=2)
    after = edited(model, images)
    found = reconstruct_from_weights(model, after)
    before, new = (of.vit.embeddings for of in (model, after))
    d_weight = (new.patch_embeddings.projection.weight - before.patch_embeddings.projection.weight).detach().numpy()
    d_positions = (new.position_embeddings - before.position_embeddings)[0, 1:].detach().numpy()
    target = d_weight.reshape(64, -1)
    _, unexplained, _, _ = np.linalg.lstsq(d_positions.T, target, rcond=None)
    assert found.residual == pytest.approx(np.sqrt(unexplained.sum()) / np.linalg.norm(target), rel=1e-6)
    variance = unexplained.sum() / ((64 - 4) * target.shape[1])
    normal = d_positions @ d_positions.T + 50 * variance * np.eye(4)
    expected = np.linalg.solve(normal, d_positions @ target)
    patches = torch.nn.functional.unfold(torch.tensor(found.image)[None], 8, stride=8)[0].T.numpy()
    np.testing.assert_allclose(patches, expected, rtol=1e-6, atol=1e-9)
    assert np.linalg.cond(d_positions) == pytest.approx(found.condition)


def test_mixtures_and_adaptive_steps_do_not_give_it():
    model, images = vit(hidden_size=64), an_image(n=2)
    of_two = reconstruct_from_weights(model, edited(model, images), PROCESSOR)
    assert max(psnr(of_two.image, images)) < 20 and of_two.residual > 1e-3
    adaptive = edited(model, images[:1], optimizer=torch.optim.AdamW, lr=1e-3)
    of_adam = reconstruct_from_weights(model, adaptive, PROCESSOR)
    assert psnr(of_adam.image, images[:1])[0] < 20 and of_adam.residual > 0.1


def test_more_patches_than_hidden_units_leave_a_part_open():
    model = vit(patch_size=4, hidden_size=8, num_attention_heads=2)
    image = an_image()
    found = reconstruct_from_weights(model, edited(model, image), PROCESSOR)
    assert found.status == "rank_deficient" and found.rank <= 8 and found.n_patches == 16
    assert "only a part" in found.reason
    assert psnr(found.image, image)[0] < 30


@pytest.mark.parametrize(
    ("frozen", "named"),
    [
        (["projection.weight", "position_embeddings"], "patch-embedding weights and position table"),
        (["position_embeddings"], "position table"),
        (["projection.weight"], "patch-embedding weights"),
    ],
)
def test_a_table_that_did_not_change_closes_the_route(frozen, named):
    model = vit()
    found = reconstruct_from_weights(model, edited(model, an_image(), frozen=frozen), PROCESSOR)
    assert found.status == "nothing_changed" and found.image is None and found.rank is None
    assert f": {named}." in found.reason


def test_low_rank_adapters_close_it_and_those_that_train_the_embeddings_do_not():
    base, image = tiny_vit().double(), an_image()
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(base), lora)
    assert reconstruct_from_weights(base, adapted).status == "nothing_changed"
    lora.modules_to_save = ["vit.embeddings"]
    saved = get_peft_model(copy.deepcopy(base), lora)
    trained = [p for name, p in saved.named_parameters() if "modules_to_save" in name and p.requires_grad]
    names = weights(saved).keys()
    logits = saved(pixel_values=torch.tensor(image * 2 - 1)).logits
    loss = -torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.data.sub_(0.05 * gradient)
    found = reconstruct_from_weights(base, saved, PROCESSOR)
    assert psnr(found.image, image)[0] > 100
    assert weights(saved).keys() == names  # still a model with its adapter


def test_checkpoints_by_their_folder(tmp_path):
    model, image = vit().float(), an_image()
    after = edited(model, image, n_steps=5)
    for name, of in (("before", model), ("after", after)):
        of.save_pretrained(tmp_path / name)
    by_name = reconstruct_from_weights(str(tmp_path / "before"), tmp_path / "after", PROCESSOR)
    by_object = reconstruct_from_weights(model, after, PROCESSOR)
    np.testing.assert_array_equal(by_name.image, by_object.image)
    assert psnr(by_name.image, image)[0] > 60


def test_rounding_is_what_limits_it():
    model, image = vit(hidden_size=64).float(), an_image()
    after, found = edited(model, image, n_steps=5), []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stored = [copy.deepcopy(of).to(dtype) for of in (model, after)]
        assert PatchTables.of(stored[1]).rounding == torch.finfo(dtype).eps
        found.append(reconstruct_from_weights(*stored, PROCESSOR).image)
        # What was stored in 16 bit is no better for being loaded in 32, and is not taken for more than it is.
        loaded = reconstruct_from_weights(*(of.float() for of in stored), PROCESSOR)
        np.testing.assert_array_equal(loaded.image, found[-1])
    decibels = psnr(np.stack(found), image)
    assert decibels[0] > 100 and (np.diff(decibels) < -10).all()


def test_an_edit_of_weights_that_were_in_16_bit_is_as_open_as_any():
    model, image = vit().to(torch.bfloat16).float(), an_image()
    found = reconstruct_from_weights(model, edited(model, image, n_steps=1, lr=1e-3), PROCESSOR)
    assert psnr(found.image, image)[0] > 40


def test_models_that_it_is_not_for_and_broken_ones():
    model, image = vit(), an_image()
    swin = SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
    )
    for other in (swin, tiny_llama()):
        found = reconstruct_from_weights(other, other)
        assert found.status == "not_applicable" and found.image is None
    after = edited(model, image)
    with torch.no_grad():
        after.vit.embeddings.position_embeddings[0, 2, 3] = torch.nan
    assert reconstruct_from_weights(model, after).status == "not_finite"
    with pytest.raises(ValueError, match="one architecture"):
        reconstruct_from_weights(model, vit(patch_size=4))


def test_models_stay_as_they_are_and_no_image_is_shown():
    model = vit().train()
    after = edited(model, an_image()).train()
    before = weights(model), weights(after)
    found = reconstruct_from_weights(model, after)
    for state, of in zip(before, (model, after), strict=True):
        assert of.training and all(torch.equal(value, of.state_dict()[name]) for name, value in state.items())
    shown = found.as_dict()
    assert "image" not in shown and "array" not in repr(found) and json.dumps(shown)
    assert json.dumps(reconstruct_from_weights(model, model).as_dict())


def test_without_a_processor_the_result_is_what_the_model_reads():
    model, image = vit(), an_image()
    found = reconstruct_from_weights(model, edited(model, image))
    np.testing.assert_allclose(found.image, image[0] * 2 - 1, atol=1e-5)
