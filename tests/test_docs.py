"""The code in the documents runs as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType

from cases import text_rows
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn import METHODS, ErasureRequest, register_method
from hf_unlearn.cli.main import main
from hf_unlearn.training import UnlearningConfig


ROOT = Path(__file__).resolve().parents[1]


def python_blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text("utf-8")
    return [
        re.sub(r"(?m)^ {3}", "", block) if block.startswith("   ") else block
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ]


def test_the_method_of_contributing(tmp_path, monkeypatch, capsys):
    (block,) = python_blocks("CONTRIBUTING.md")
    module = ModuleType("jensun")
    monkeypatch.setitem(sys.modules, "jensun", module)  # a checkpoint pickles the config by the name of its module
    names = vars(module)
    exec(block, names)
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
