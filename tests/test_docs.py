"""The code in the documents runs as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType

from cases import text_rows
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn import METHODS, ErasureRequest, register_method
from hf_unlearn.audit import AuditConfig, audit, score
from hf_unlearn.audit.attacks import attack as declarations
from hf_unlearn.audit.attacks import table
from hf_unlearn.audit.measures import measure as measures
from hf_unlearn.cli.main import main
from hf_unlearn.training import UnlearningConfig


ROOT = Path(__file__).resolve().parents[1]


def python_blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text("utf-8")
    return [
        re.sub(r"(?m)^ {3}", "", block) if block.startswith("   ") else block
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ]


def module_of(name: str, text: str, monkeypatch) -> ModuleType:
    """The block of CONTRIBUTING that has this text, as a module of that name."""
    (block,) = [block for block in python_blocks("CONTRIBUTING.md") if text in block]
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(block, vars(module))
    return module


def test_the_method_of_contributing(tmp_path, monkeypatch, capsys):
    # A checkpoint pickles the config by the name of its module.
    names = vars(module_of("jensun", "class JensUnTrainer", monkeypatch))
    trainer = names["JensUnTrainer"](
        tiny_llama(),
        names["JensUnConfig"](str(tmp_path), use_cpu=True, max_steps=2, report_to="none", disable_tqdm=True),
        text_rows(8),
        text_rows(8, offset=100),
        processing_class=tiny_tokenizer(),
    )
    assert isinstance(trainer.args, UnlearningConfig) and trainer.args.retain_loss == "kl"
    trainer.train()
    assert trainer.state.global_step == 2
    # In a package of the user's own.
    monkeypatch.setattr(METHODS, "registered", {})
    register_method("jensun", names["JensUnTrainer"])
    assert main(["methods", "jensun"]) == 0
    assert "2509.02820" in capsys.readouterr().out


def test_the_measure_and_the_attack_of_contributing(monkeypatch):
    monkeypatch.setattr(measures, "MEASURES", list(measures.MEASURES))
    monkeypatch.setattr(declarations, "DECLARED", dict(declarations.DECLARED))
    monkeypatch.setattr(table, "DECLARED", declarations.DECLARED)
    measure = module_of("first_token", "def first_token_is_right", monkeypatch)
    module_of("shouted", "def shouted_prompts", monkeypatch)
    rows = text_rows(30)
    sets = {"forget": rows.select(range(10)), "holdout": rows.select(range(10, 30))}
    models = [tiny_llama(seed=seed) for seed in range(3)]
    config = AuditConfig(max_new_tokens=2)
    report = audit(*models, sets, "extraction", processing_class=tiny_tokenizer(), config=config)
    rows_of_report = {row["measure"]: row for row in report.rows if row["set"] == "forget"}
    for name in ("first_token_is_right", "extraction_strength_shouted", "answer_probability_shouted"):
        assert rows_of_report[name]["verdict"]["n_retrained"] == 1, name
    # An answer without a token is no right one.
    scores = score(models[0], tiny_tokenizer(), [*sets["forget"], {"prompt": "A", "completion": ""}], sampling=())
    assert measure.first_token_is_right(scores)[-1] == False  # noqa: E712


def test_the_module_of_contributing(monkeypatch):
    verbatim = module_of("verbatim", "class Verbatim", monkeypatch).Verbatim()
    assert verbatim.compute(predictions=[True, False, True, True])["verbatim"] == 0.75
    found = verbatim.compute(examples=list(text_rows(6)), model=tiny_llama(), processing_class=tiny_tokenizer())
    assert found["verbatim"] == 0 and found["verbatim_high"] > 0


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    (block,) = python_blocks("README.md")
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("my-model")
    tiny_tokenizer().save_pretrained("my-model")
    rows = [row | {"person": f"p{i}"} for i, row in enumerate(text_rows(20))]
    from datasets import Dataset

    Dataset.from_list(rows).to_json("my-data.jsonl")
    names = {}
    exec(block.replace("NPOConfig(", "NPOConfig(use_cpu=True, max_steps=2, report_to='none', "), names)
    assert (tmp_path / "unlearned" / "model.safetensors").exists()
    assert isinstance(names["request"], ErasureRequest)
