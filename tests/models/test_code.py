"""Code that comes with a checkpoint runs only where that was asked for, and nobody is asked at a prompt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import text_rows
from datasets import DatasetDict
from tiny import tiny_llama, tiny_tokenizer, tiny_vit

from hf_unlearn import ErasureRequest
from hf_unlearn.models.load import load_config, load_model, load_processing_class


CODE = {
    "mine.py": """
        from transformers import LlamaConfig, LlamaForCausalLM
        open({ran!r}, "a").close()
        class MyConfig(LlamaConfig):
            model_type = "mine"
        class MyModel(LlamaForCausalLM):
            config_class = MyConfig
    """,
    "words.py": """
        from transformers import PreTrainedTokenizerFast
        open({ran!r}, "a").close()
        class MyTokenizer(PreTrainedTokenizerFast):
            pass
    """,
    "pixels.py": """
        from transformers import ViTImageProcessorPil
        open({ran!r}, "a").close()
        class MyProcessor(ViTImageProcessorPil):
            pass
    """,
}
# Every door by which a name becomes a model, in one process whose answer to any question is yes.
DOORS = """
import sys
from hf_unlearn.audit.run import audit
from hf_unlearn.audit.table.streaming import in_memory
from hf_unlearn.cli.job import Job
from hf_unlearn.cli.main import main
from hf_unlearn.evaluate_modules.base import load_metric, load_suite, loaded
from hf_unlearn.methods import NPOConfig, NPOTrainer
from hf_unlearn.models.load import load_model, load_processing_class, require_model

folder, rows = sys.argv[1], [{"prompt": "a", "completion": " b"}] * 2
given = [text for name in ("dataset_name", "request", "output_dir") for text in (f"--{name}", f"{folder}/{name}")]
doors = {}
for kind in ("config", "model"):
    name = f"{folder}/{kind}"
    doors |= {
        f"require_model of {kind}": lambda name=name: require_model(name),
        f"load_model of {kind}": lambda name=name: load_model(name),
        f"audit of {kind}": lambda name=name: audit(name, split={"forget": rows}),
        f"trainer of {kind}": lambda name=name: NPOTrainer(name, NPOConfig(f"{folder}/out", use_cpu=True), rows, rows),
        f"module of {kind}": lambda name=name: load_metric("extraction_attack").compute(examples=rows, model=name),
        f"loaded of {kind}": lambda name=name: loaded(name),
        f"suite of {kind}": lambda name=name: load_suite("registry").run(name),
        f"attack of {kind}": lambda name=name: in_memory(name).__enter__(),
        f"recipe of {kind}": lambda name=name: Job.from_arguments(["--model_name_or_path", name, *given]),
    }
doors |= {f"processing of {kind}": lambda kind=kind: load_processing_class(f"{folder}/{kind}") for kind in ("words", "pixels")}
for door, use in doors.items():
    try:
        use()
    except ValueError as error:
        print(f"{door}: {error}")
    else:
        print(f"{door}: nothing was said")
print("command: exit code", main(["audit", "--model_name_or_path", f"{folder}/config", *given]))
print("not read:", repr(sys.stdin.read()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    code = {
        name: "\n".join(line[8:] for line in text.splitlines()).format(ran=str(folder / "ran"))
        for name, text in CODE.items()
    }

    def save(name, model, file, changed, code_file):
        model.save_pretrained(folder / name)
        if name != "pixels":
            tiny_tokenizer().save_pretrained(folder / name)
        path = folder / name / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changed))
        (folder / name / code_file).write_text(code[code_file])

    of_model = {
        "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
        "model_type": "mine",
    }
    of_model["architectures"] = ["MyModel"]
    save("config", tiny_llama(), "config.json", of_model, "mine.py")
    # A type that transformers has, but another class of it: its own would be taken without a word.
    only_model = {"auto_map": {"AutoModelForCausalLM": "mine.MyModel"}, "architectures": ["MyModel"]}
    save("model", tiny_llama(), "config.json", only_model, "mine.py")
    of_tokenizer = {"auto_map": {"AutoTokenizer": [None, "words.MyTokenizer"]}, "tokenizer_class": "MyTokenizer"}
    save("words", tiny_llama(), "tokenizer_config.json", of_tokenizer, "words.py")
    of_images = {"auto_map": {"AutoImageProcessor": "pixels.MyProcessor"}, "image_processor_type": "MyProcessor"}
    save("pixels", tiny_vit(), "preprocessor_config.json", of_images, "pixels.py")
    rows = text_rows(8)
    DatasetDict(train=rows, holdout=text_rows(8, 100)).save_to_disk(folder / "dataset_name")
    ErasureRequest.records(rows=[1, 2]).save(folder / "request")
    return folder  # fmt: skip


def test_no_door_runs_it_or_asks(folder):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DOORS, str(folder)],
        input="y\n" * 50,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "ran").exists()
    said = done.stdout.splitlines()
    assert said[-1] == "not read: " + repr("y\n" * 50)
    errors = [line for line in said if " of " in line and ": " in line and not line.startswith("not read")]
    assert len(errors) >= 20
    for line in errors:
        file = {"config": "mine.py", "model": "mine.py", "words": "words.py", "pixels": "pixels.py"}
        kind = line.split(" of ")[1].split(":")[0]
        assert f"Python code of its own ({file[kind]})" in line, line
        assert "--trust_remote_code true" in line and "load_model(name, trust_remote_code=True)" in line
    assert any(line.startswith("command: exit code 2") for line in said)
    assert "comes with Python code of its own (mine.py)" in done.stderr and "Traceback" not in done.stderr


def test_it_runs_where_that_was_asked_for(folder):
    name = str(folder / "config")
    assert type(load_model(name, trust_remote_code=True)).__name__ == "MyModel"
    assert type(load_config(name, trust_remote_code=True)).__name__ == "MyConfig"
    for kind, expected in (("words", "MyTokenizer"), ("pixels", "MyProcessor")):
        assert type(load_processing_class(str(folder / kind), trust_remote_code=True)).__name__ == expected
    assert (folder / "ran").exists()
