"""Localised LoRA editing: where it edits, what it starts from, what it leaves."""

import copy

import pytest
import torch
from cases import MODELS, make_trainer, text_rows, weights
from peft import LoraConfig
from tiny import tiny_llama, tiny_tokenizer
from tiny_weights import falcon, mamba, resnet
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_unlearn.data import encode_dataset
from hf_unlearn.methods import LoRAEditConfig, LoRAEditTrainer
from hf_unlearn.methods.lora_edit import weighted_factors
from hf_unlearn.models.likelihood import target_logits


KINDS = ["llama", "gpt2", "vit"]


def logits(model, trainer, n=8):
    batch = trainer.data_collator([trainer.train_dataset.forget[i] for i in range(n)])
    with torch.no_grad():
        return target_logits(model.eval(), batch).logits


def test_the_factors_are_the_best_for_the_weighted_error():
    weight, importance = torch.randn(7, 5, dtype=torch.float64), torch.rand(7, 5, dtype=torch.float64) ** 4
    a, b = weighted_factors(weight, importance, rank=2, scaling=2.0)
    rho = importance.sum(1).sqrt()
    rho = rho / rho.mean() + 1e-5

    def error(approximation):
        return (rho[:, None] * (weight - approximation)).norm()

    # Eckart and Young: no other matrix of rank 2 comes closer in the weighted norm; plain truncation does not.
    u, s, vh = torch.linalg.svd(rho[:, None] * weight)
    assert error(2.0 * b @ a).item() == pytest.approx(s[2:].norm().item(), rel=1e-10)
    u, s, vh = torch.linalg.svd(weight)
    assert error((u[:, :2] * s[:2]) @ vh[:2]) > error(2.0 * b @ a)
    whole_a, whole_b = weighted_factors(weight, importance, rank=5, scaling=2.0)
    torch.testing.assert_close(2.0 * whole_b @ whole_a, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_at_the_start_and_the_outcome_is_plain(kind, tmp_path):
    trainer = make_trainer("lora_edit", tmp_path, kind, max_steps=3)
    original = MODELS[kind]().double()
    torch.testing.assert_close(logits(trainer.model, trainer), logits(original, trainer), rtol=0, atol=1e-10)
    # The base has given its most important part to the adapter: without it, the model is another one.
    with trainer.model.disable_adapter():
        assert (logits(trainer.model, trainer) - logits(original, trainer)).abs().max() > 1e-3

    unmerged = {}
    finish = trainer.finish

    def keep_unmerged():
        unmerged["logits"] = logits(trainer.model, trainer)
        finish()

    trainer.finish = keep_unmerged
    trainer.train()
    torch.testing.assert_close(logits(trainer.model, trainer), unmerged["logits"], rtol=0, atol=1e-10)
    before, after = weights(original), weights(trainer.model)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in trainer.chosen}

    trainer.save_model(tmp_path / "saved")
    reloaded = type(original).from_pretrained(tmp_path / "saved", dtype="auto")
    assert torch.equal(logits(reloaded, trainer), logits(trainer.model, trainer))


@pytest.mark.parametrize("options", [{"trainable_layers": [1]}, {"trainable": r"model\.layers\.1\..*_proj\.weight"}])
def test_it_adapts_only_what_was_selected_by_its_own_name(options, tmp_path):
    model = tiny_llama().double()
    before = weights(model)
    trainer = make_trainer("lora_edit", tmp_path, model, n_modules=20, **options)
    assert len(trainer.chosen) == 7 and all(name.startswith("model.layers.1.") for name in trainer.chosen)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in trainer.chosen}


@pytest.mark.parametrize(("make", "n"), [(mamba, 4), (falcon, 8)])
def test_it_adapts_linear_layers_of_any_class_that_passes_go_through(make, n, tmp_path):
    model = make().double()
    # Of a Mamba the projections in and of x: `dt_proj` is read past its module, and peft refuses `out_proj`.
    trainer = make_trainer("lora_edit", tmp_path, model, n_modules=20, trainable=".*")
    assert len(trainer.chosen) == n and not any("dt_proj" in name or "out_proj" in name for name in trainer.chosen)
    torch.testing.assert_close(logits(trainer.model, trainer), logits(make().double(), trainer), rtol=0, atol=1e-9)
    trainer.train()


@pytest.mark.parametrize(
    ("make", "trainable"), [(mamba, r".*out_proj.*"), (resnet, r"classifier.*"), (resnet, r".*convolution.*")]
)
def test_what_has_nothing_to_adapt_is_refused_before_any_pass(make, trainable, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_unlearn.methods.lora_edit.squared_gradients", lambda *_: pytest.fail("A pass was made."))
    with pytest.raises(ValueError, match="may move.* Either set trainable and trainable_layers to other weights"):
        make_trainer("lora_edit", tmp_path, make(), trainable=trainable)


def test_what_no_pass_goes_through_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of these may move"):
        make_trainer("lora_edit", tmp_path, mamba().double(), trainable=r".*dt_proj.*")


def test_it_edits_where_the_forget_set_weighs_more(tmp_path):
    forget, retain, tokenizer = text_rows(6), text_rows(9, offset=100), tiny_tokenizer()
    model = tiny_llama().double()

    def fisher(rows):
        total = {}
        for row in encode_dataset(rows, tokenizer):
            ids = torch.tensor([row["input_ids"]])
            nll = torch.nn.functional.cross_entropy(
                model(ids).logits[0, :-1], torch.tensor(row["labels"][1:]), ignore_index=-100, reduction="sum"
            )
            model.zero_grad()
            nll.backward()
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and "layers" in name:
                    total[name] = total.get(name, 0.0) + module.weight.grad.square().sum().item() / len(rows)
        return total

    f, r = fisher(forget), fisher(retain)
    expected = sorted(f, key=lambda name: -f[name] / r[name])[:5]
    config = LoRAEditConfig(str(tmp_path), use_cpu=True, n_modules=5, rank=2, report_to="none")
    trainer = LoRAEditTrainer(copy.deepcopy(model), config, forget, retain, processing_class=tokenizer)
    assert trainer.chosen == expected
    assert all("lora_" in name and any(chosen in name for chosen in expected) for name in trainer.trainable_names)


def test_same_bytes_and_resume(tmp_path):
    arguments = {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3}
    first = make_trainer("lora_edit", tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    first.train()
    resumed = make_trainer("lora_edit", tmp_path / "b", **arguments)
    assert resumed.chosen == first.chosen
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in weights(first.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="merge"):
        make_trainer("lora_edit", tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="compares the forget set with the retain set"):
        make_trainer("lora_edit", tmp_path, retain_loss="none")
    with pytest.raises(ValueError, match="n_modules=0"):
        make_trainer("lora_edit", tmp_path, n_modules=0)
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "base")
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    with pytest.raises(ValueError, match="without quantization"):
        make_trainer("lora_edit", tmp_path, quantized)
