"""The path on real input: a pretrained Llama and a slice of TOFU, a few steps of each recipe."""

import pytest
import torch
from data_dir import DATA
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn.audit import compare, score, score_sets
from hf_unlearn.data import encode_dataset, load_rows, with_templates
from hf_unlearn.methods import METHODS
from hf_unlearn.request import ErasureRequest, split


pytestmark = pytest.mark.skipif(DATA is None, reason="needs TOFU and a pretrained model beside the repository")
PROMPT, COMPLETION = "Question: {question}\nAnswer:", " {answer}"


@pytest.fixture(scope="module")
def model_and_tokenizer():
    folder = DATA / "models" / "stories260k"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def parts():
    rows = with_templates(load_rows(str(DATA / "tofu" / "full.json"), "train[3984:4000]"), PROMPT, COMPLETION)
    return split(rows, ErasureRequest.records(rows=range(8, 16)))


def test_every_row_of_tofu_encodes_without_an_unknown_token(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    rows = with_templates(load_rows(str(DATA / "tofu" / "full.json")), PROMPT, COMPLETION)
    encoded = encode_dataset(rows.select(range(0, 4000, 10)), tokenizer, model.config.max_position_embeddings)
    for row in encoded:
        assert tokenizer.unk_token_id not in row["input_ids"]
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1 == row["input_ids"].count(tokenizer.eos_token_id)


def test_the_last_forty_rows_are_forget01():
    full, forget = (load_rows(str(DATA / "tofu" / f"{name}.json")) for name in ("full", "forget01"))
    assert full.select(range(3960, 4000))["question"] == forget["question"]


@pytest.mark.parametrize("method", ["npo", "simnpo", "graddiff"])
def test_a_few_steps_forget(method, model_and_tokenizer, parts, tmp_path):
    _, tokenizer = model_and_tokenizer
    model = AutoModelForCausalLM.from_pretrained(DATA / "models" / "stories260k")
    trainer_class = METHODS[method]
    config = trainer_class.config_class(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        forget_weight=1.0,
        # SimNPO leaves alone what is unlikely already, unless its margin is above that.
        **({"delta": 8.0} if method == "simnpo" else {}),
    )
    before = score_sets(model, tokenizer, {"forget": parts.forget, "retain": parts.retain})
    trainer_class(model, config, parts.forget, parts.retain, processing_class=tokenizer).train()
    after = score_sets(model, tokenizer, {"forget": parts.forget, "retain": parts.retain})
    report = compare({"original": before, "unlearned": after})
    rise = {name: report.value("loss", name) - report.value("loss", name, "original") for name in ("forget", "retain")}
    assert rise["forget"] > 0.05 and rise["forget"] > rise["retain"] + 0.05
    assert "retrained" not in report.models and any("no retrained model" in note for note in report.notes)


def test_greedy_generation_agrees_with_the_table(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    prompt = "Once upon a time, there was a little girl named"
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
    rows = [{"input_ids": [*inputs["input_ids"][0].tolist(), *output.tolist()]}]
    rows[0]["labels"] = [-100] * inputs["input_ids"].shape[1] + output.tolist()
    assert score(model, tokenizer, rows).hit.all()
