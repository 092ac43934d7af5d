"""What the base trainer promises beside the table over METHODS: errors, evaluation, references, logs."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from cases import make_trainer, text_rows, weights
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_llama, tiny_tokenizer
from transformers import TrainerCallback

from hf_unlearn.data import encode_dataset
from hf_unlearn.methods import GradDiffConfig, GradDiffTrainer, NPOConfig, NPOTrainer, SimNPOConfig
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.training import NonFiniteLossError
from hf_unlearn.training.reference import Reference


def sequence_log_probs(model, rows):
    from hf_unlearn.data import UnlearningCollator

    inputs = UnlearningCollator(0)(encode_dataset(rows, tiny_tokenizer()))
    with torch.no_grad():
        return target_logits(model.eval(), inputs).sequence_log_probs


# Errors come at construction, name the cause and say what to do.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retain": 0}, 'Either give retain_dataset, or set retain_loss="none"'),
        ({"forget": 0}, "Give it as forget_dataset"),
        ({"retain_loss": "none", "update_rule": "project"}, 'Either set retain_loss="nll"'),
        ({"trainable": "nothing"}, "no parameter that could move"),
        ({"metric_for_best_model": "forget_gap", "greater_is_better": False}, "give both in eval_dataset"),
        ({"max_length": 10}, "Row 0 of the forget set: A text has"),
        ({"push_to_hub": True}, "uploads the whole output folder"),
        ({"retain_loss": "mse"}, "none of nll, kl, none"),
        ({"update_rule": "pcgrad"}, "none of add, project"),
        ({"retain_weight": -1.0}, "a weight is not negative"),
        ({"remove_unused_columns": True}, "Leave it false"),
        ({"beta": 0.0}, "must be positive"),
        (
            {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
            "the weights would not forget",
        ),
    ],
)
def test_combinations_that_cannot_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer("npo", tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_errors_hold_no_text_of_a_row(tmp_path):
    rows = Dataset.from_list([{"prompt": "Question: zyxw?\nAnswer:", "completion": " "}])
    with pytest.raises(ValueError, match="Row 0 of the forget set: Empty answer") as error:
        GradDiffTrainer(
            tiny_llama(),
            GradDiffConfig(str(tmp_path), use_cpu=True),
            rows,
            text_rows(4),
            processing_class=tiny_tokenizer(),
        )
    assert "zyxw" not in str(error.value) and error.value.__cause__ is None


def test_rows_that_are_streamed_or_no_text(tmp_path):
    config = NPOConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="The retain set is streamed"):
        NPOTrainer(tiny_llama(), config, text_rows(4), text_rows(4).to_iterable_dataset())
    rows = [{"prompt": "Q:", "completion": 5}]
    with pytest.raises(ValueError, match="Row 0 of the forget set: The column completion holds int"):
        NPOTrainer(tiny_llama(), config, rows, text_rows(4), processing_class=tiny_tokenizer())


def test_no_checkpoint_goes_to_a_tracker(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    with pytest.raises(ValueError, match="Either unset it"):
        NPOConfig(str(tmp_path), use_cpu=True, report_to=["wandb"])


def test_wrong_config_and_missing_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="Give a NPOConfig"):
        NPOTrainer(tiny_llama(), SimNPOConfig(str(tmp_path), use_cpu=True), text_rows(4), text_rows(4))
    with pytest.raises(ValueError, match="no tokenizer was given"):
        NPOTrainer(tiny_llama(), NPOConfig(str(tmp_path), use_cpu=True), text_rows(4), text_rows(4))


def test_an_adapter_is_merged_before_another_one_is_put_on(tmp_path):
    old = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    new = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(tiny_llama().double(), old)
    expected = sequence_log_probs(model.eval(), text_rows(4))
    trainer = make_trainer("npo", tmp_path, model=model, peft_config=new)
    torch.testing.assert_close(sequence_log_probs(trainer.model.eval(), text_rows(4)), expected)
    assert trainer.trainable_names and all("q_proj.lora" in name for name in trainer.trainable_names)


def test_a_model_without_a_pad_token_needs_none(tmp_path):
    # The attention mask comes from the lengths, so no token is mistaken for padding: the result is the same.
    results = []
    for pad in (True, False, "eos"):
        trainer = NPOTrainer(
            tiny_llama().double(),
            NPOConfig(
                str(tmp_path),
                use_cpu=True,
                max_steps=2,
                per_device_train_batch_size=8,
                optim="sgd",
                learning_rate=0.05,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
            ),
            text_rows(8),
            text_rows(20, 100),
            processing_class=tiny_tokenizer(pad=pad),
        )
        trainer.train()
        results.append(weights(trainer.model))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)


# A loss that is not finite.


class Poison:
    """Makes the forward of a model return NaN from a given call on."""

    def __init__(self, model, call):
        self.calls, self.call = 0, call
        model.lm_head.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        if module.training:
            self.calls += 1
            if self.calls >= self.call:
                return output * float("nan")
        return output


def test_a_nan_loss_stops_and_keeps_the_last_good_weights(tmp_path):
    model = tiny_llama().double()
    Poison(model, call=4)
    trainer = make_trainer("graddiff", tmp_path, model=model, max_steps=9)
    with pytest.raises(NonFiniteLossError, match="at step 4.*checkpoint-3.*lower learning_rate"):
        trainer.train()
    saved = type(model).from_pretrained(tmp_path / "checkpoint-3", dtype=torch.float64)
    clean = make_trainer("graddiff", tmp_path / "clean", max_steps=9, save_strategy="steps", save_steps=3)
    clean.train()
    good = type(model).from_pretrained(tmp_path / "clean" / "checkpoint-3", dtype=torch.float64)
    for name, value in weights(good).items():
        assert torch.equal(value, weights(saved)[name]), name
    resumed = make_trainer("graddiff", tmp_path, max_steps=9)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in weights(clean.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


class Break(TrainerCallback):
    """Spoils the weights after a step, as an overflow would."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            model.lm_head.weight.data[0, 0] = float("inf")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer("graddiff", tmp_path, max_steps=9, callbacks=[Break()])
    with pytest.raises(NonFiniteLossError, match="at step 3"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


class BreakGradient(TrainerCallback):
    """A gradient that is not finite although the loss is."""

    def __init__(self, model):
        model.lm_head.weight.register_hook(self.spoil)
        self.step = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step

    def spoil(self, gradient):
        return gradient * float("nan") if self.step == 2 else gradient


@pytest.mark.parametrize("rule", ["add", "project"])
def test_a_nan_gradient_stops_before_the_step(rule, tmp_path):
    model = tiny_llama().double()
    trainer = make_trainer(
        "graddiff", tmp_path, model=model, max_steps=9, callbacks=[BreakGradient(model)], update_rule=rule
    )
    with pytest.raises(NonFiniteLossError, match="The gradient is nan at step 3.*checkpoint-2"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_run_without_a_step_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dataloader_drop_last is on"):
        make_trainer("npo", tmp_path, forget=4, dataloader_drop_last=True).train()


def test_logs_after_a_resume_are_those_of_a_run_without(tmp_path):
    arguments = {"max_steps": 6, "update_rule": "project"}
    through = make_trainer("graddiff", tmp_path / "a", save_strategy="steps", save_steps=3, **arguments)
    through.train()
    resumed = make_trainer("graddiff", tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    logs = [
        [(log["step"], log["loss"], log["forget_loss"]) for log in t.state.log_history if "loss" in log]
        for t in (through, resumed)
    ]
    assert len(logs[0]) == 6 and logs[0] == logs[1]


def test_bf16_and_activation_checkpointing_run(tmp_path):
    trainer = make_trainer("npo", tmp_path, model=tiny_llama(), bf16=True, activation_checkpointing=True, max_steps=3)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


# Evaluation.


def test_evaluation_against_a_plain_loop(tmp_path):
    sets = {"forget": text_rows(7), "holdout": text_rows(9, offset=200)}
    values = []
    for batch in (2, 5, 16):
        trainer = make_trainer("npo", tmp_path, eval_dataset=sets, per_device_eval_batch_size=batch)
        values.append(trainer.evaluate())
    model = tiny_llama().double()
    for name, rows in sets.items():
        nll, hits, count = 0.0, 0, 0
        for row in encode_dataset(rows, tiny_tokenizer()):
            with torch.no_grad():
                log_p = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for t in range(1, len(row["labels"])):
                if row["labels"][t] != -100:
                    nll -= log_p[t - 1, row["labels"][t]].item()
                    hits += log_p[t - 1].argmax().item() == row["labels"][t]
                    count += 1
        for metrics in values:
            assert metrics[f"eval_{name}_loss"] == pytest.approx(nll / count, rel=1e-6)
            assert metrics[f"eval_{name}_accuracy"] == pytest.approx(hits / count)
    assert values[0]["eval_forget_gap"] == pytest.approx(
        abs(values[0]["eval_forget_loss"] - values[0]["eval_holdout_loss"])
    )


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    sets = {"forget": text_rows(8), "holdout": text_rows(8, offset=200)}
    trainer = make_trainer(
        "ga",
        tmp_path,
        eval_dataset=sets,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="forget_gap",
        greater_is_better=False,
        stop_when_forgotten=False,
        learning_rate=0.2,
    )
    trainer.train()
    gaps = {log["step"]: log["eval_forget_gap"] for log in trainer.state.log_history if "eval_forget_gap" in log}
    assert set(gaps) == set(range(1, 9))
    assert trainer.state.best_metric == min(gaps.values())
    assert gaps[8] > min(gaps.values())  # else the test shows nothing
    assert trainer.evaluate()["eval_forget_gap"] == pytest.approx(min(gaps.values()), rel=1e-6)


def test_it_stops_when_forgotten_and_not_before(tmp_path):
    sets = {"forget": text_rows(8), "holdout": text_rows(8, offset=200)}
    arguments = {
        "eval_dataset": sets,
        "max_steps": 30,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 0.2,
    }
    trainer = make_trainer("ga", tmp_path, **arguments)
    trainer.train()
    history = trainer.state.log_history
    forget = [log["eval_forget_loss"] for log in history if "eval_forget_loss" in log]
    holdout = [log["eval_holdout_loss"] for log in history if "eval_holdout_loss" in log]
    assert trainer.state.global_step < 30
    assert [f >= h for f, h in zip(forget, holdout, strict=True)] == [False] * (len(forget) - 1) + [True]
    on = make_trainer("ga", tmp_path, stop_when_forgotten=False, **(arguments | {"max_steps": len(forget) + 2}))
    on.train()
    assert on.state.global_step == len(forget) + 2


# What the log says.


def test_terms_are_logged_and_add_up(tmp_path):
    trainer = make_trainer(
        "graddiff",
        tmp_path,
        max_steps=6,
        logging_steps=2,
        forget_weight=0.3,
        retain_weight=2.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    for log in logs:
        assert log["loss"] == pytest.approx(0.3 * log["forget_loss"] + 2 * log["retain_loss"], rel=1e-5, abs=1e-6)


def test_no_text_in_what_the_trainer_writes(tmp_path):
    trainer = make_trainer("npo", tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"small village" not in file.read_bytes(), file.name
    assert "small village" not in json.dumps(trainer.state.log_history)


# The reference.


def test_cached_log_probs_are_those_of_the_model_at_its_start(tmp_path):
    trainer = make_trainer("idk_dpo", tmp_path, model=tiny_llama(attention_dropout=0.5).double())
    expected = sequence_log_probs(tiny_llama().double(), text_rows(8))
    trainer.train()
    cached = trainer.train_dataset.reference_log_probs
    np.testing.assert_allclose(cached["forget"], expected.numpy(), rtol=1e-5)
    assert cached["alternate"].shape == (8, 4)
    trainer.train()  # again: from the cache, not from the changed model
    assert trainer.train_dataset.reference_log_probs is cached


def test_a_given_reference_model_is_used(tmp_path):
    other = tiny_llama(seed=1).double()
    expected = sequence_log_probs(other, text_rows(8))
    trainer = make_trainer("npo", tmp_path, ref_model=other)
    trainer.train()
    np.testing.assert_allclose(trainer.train_dataset.reference_log_probs["forget"], expected.numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="ref_model is the model that will be trained"):
        make_trainer("npo", tmp_path, model=other, ref_model=other)


@pytest.mark.parametrize("kind", ["full", "layers", "fresh adapter", "adapter with the knowledge"])
def test_the_reference_is_the_model_at_its_start(kind, tmp_path):
    model = tiny_llama(attention_dropout=0.3).double()
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=kind == "fresh adapter", lora_dropout=0.3)
    arguments = {}
    if kind == "adapter with the knowledge":
        model = get_peft_model(model, lora)  # with random B: without it the model is another one
    elif kind == "fresh adapter":
        arguments["peft_config"] = lora
    elif kind == "layers":
        arguments["trainable_layers"] = [1]
    start = sequence_log_probs(deepcopy(model), text_rows(8))
    trainer = make_trainer("graddiff", tmp_path, model=model, retain_loss="kl", max_steps=3, **arguments)
    trainer.train()
    from hf_unlearn.data import UnlearningCollator

    inputs = UnlearningCollator(0)(encode_dataset(text_rows(8), tiny_tokenizer()))
    now = weights(trainer.model)
    reference = trainer._reference.target_logits(trainer.model, inputs).sequence_log_probs
    torch.testing.assert_close(reference, start, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(now[name], value) for name, value in weights(trainer.model).items())
    assert not torch.allclose(sequence_log_probs(trainer.model, text_rows(8)), start, rtol=1e-4)
    # Only what may move has a copy.
    kept = sum(value.numel() for value in trainer._reference._start.values())
    assert kept == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def test_a_loss_that_needs_whole_distributions_gets_those_of_the_start(tmp_path):
    seen = []

    class Distribution(GradDiffTrainer):
        reference = "logits"

        def forget_loss(self, forget, reference):
            seen.append(reference.sequence_log_probs.sort().values)
            return super().forget_loss(forget)

    start = sequence_log_probs(tiny_llama().double(), text_rows(8)).sort().values
    config = GradDiffConfig(
        str(tmp_path), use_cpu=True, max_steps=3, per_device_train_batch_size=8, report_to="none", learning_rate=0.01
    )
    trainer = Distribution(
        tiny_llama().double(), config, text_rows(8), text_rows(8, offset=100), processing_class=tiny_tokenizer()
    )
    trainer.train()
    assert len(seen) == 3
    for values in seen:
        torch.testing.assert_close(values, start, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sequence_log_probs(trainer.model, text_rows(8)).sort().values, start, rtol=1e-3)


def test_kl_starts_at_zero_and_is_not_negative(tmp_path):
    trainer = make_trainer("graddiff", tmp_path, retain_loss="kl", max_steps=4)
    trainer.train()
    terms = [log["retain_loss"] for log in trainer.state.log_history if "retain_loss" in log]
    assert terms[0] == pytest.approx(0, abs=1e-12) and all(term >= 0 for term in terms[1:]) and terms[-1] > 0


def test_a_saved_adapter_holds_no_reference(tmp_path):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    trainer = make_trainer("graddiff", tmp_path, model=model, retain_loss="kl", save_strategy="steps", save_steps=2)
    trainer.train()
    assert not [folder for folder in (tmp_path / "checkpoint-2").iterdir() if folder.is_dir()]


def test_given_model_moves_to_the_inputs_and_stays_frozen():
    given = tiny_llama()
    reference = Reference(tiny_llama(seed=1), given)
    assert not any(p.requires_grad for p in given.parameters()) and reference._start is None


# LoRA on a quantized base.


def test_qlora(tmp_path):
    from transformers import BitsAndBytesConfig

    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "base")
    base = type(tiny_llama()).from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    with pytest.raises(ValueError, match="QLoRA"):
        make_trainer("npo", tmp_path, model=base)
    trainer = make_trainer(
        "npo", tmp_path, model=base, peft_config=LoraConfig(r=2, target_modules="all-linear"), retain_loss="kl"
    )
    # Compared by what it computes: on the CPU, bitsandbytes repacks its weights in the first forward.
    with trainer.model.disable_adapter():
        before = sequence_log_probs(trainer.model, text_rows(8))
    trainer.train()
    with trainer.model.disable_adapter():
        assert torch.equal(sequence_log_probs(trainer.model, text_rows(8)), before)
    assert not torch.equal(sequence_log_probs(trainer.model, text_rows(8)), before)
    assert all("lora_" in name for name in trainer.trainable_names)


def test_gradients_through_a_quantized_base_after_an_evaluation(tmp_path):
    from transformers import BitsAndBytesConfig

    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")

    def gradients(dequantize, evaluated_before):
        base = type(tiny_llama()).from_pretrained(tmp_path / "base", quantization_config=quantization)
        if dequantize:
            base = base.dequantize().float()
        if evaluated_before:
            sequence_log_probs(base, text_rows(4))
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        trainer = make_trainer("npo", tmp_path, model=base, peft_config=lora, max_steps=1, learning_rate=0.0)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        kept = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda g, name=name: kept.__setitem__(name, g.clone()))
        trainer.train()  # the pass for the reference comes first, in evaluation mode
        return kept

    expected = gradients(dequantize=True, evaluated_before=False)
    # Packing rounds the scales of the blocks to 16 bit, which unpacking cannot undo.
    for evaluated_before, tolerance in ((False, 1e-3), (True, 0.05)):
        found = gradients(dequantize=False, evaluated_before=evaluated_before)
        assert found.keys() == expected.keys()
        error = sum((found[name] - gradient).norm() ** 2 for name, gradient in expected.items()) ** 0.5
        assert error < tolerance * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5
