"""A method, a measure and an attack of somebody's own package, each one file, as an installed distribution."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import text_rows
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn import ErasureRequest


ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "my_method.py": '''
from hf_unlearn import TargetLogits, UnlearningConfig, UnlearningTrainer


class MineConfig(UnlearningConfig):
    """Options of [`MineTrainer`]: none of its own."""


class MineTrainer(UnlearningTrainer):
    """Make the forget answers as likely as one in a hundred.

    Source: Jane Doe, 2026-10.
    """

    config_class = MineConfig

    def forget_loss(self, forget: TargetLogits):
        return forget.token_mean((forget.log_probs + 4.6) ** 2)
''',
    "my_measure.py": '''
import numpy as np

from hf_unlearn.audit.measures.measure import measure
from hf_unlearn.audit.measures.statistic import MEMORY


def first_token_is_right(scores) -> np.ndarray:
    """Whether the first token of the answer is the most likely one."""
    return scores.hit[scores.offsets[:-1]]


measure("first_token_is_right", "forget", MEMORY, first_token_is_right, "verbatim", "rate", ("text",))
''',
    "my_attack.py": '''
from hf_unlearn.audit.attacks.attack import attack
from hf_unlearn.audit.records import Found


@attack("knowledge")
def shouted(model, records):
    """The same answers to prompts in capital letters."""
    rows = [{**row, "prompt": row["prompt"].upper()} for row in records.rows("forget")]
    table = records.score(model, rows)
    for name, function in records.measures.items():
        yield Found({records.statistic(f"{name}_shouted", "knowledge"): function(table)})
''',
}
ENTRY_POINTS = """
[hf_unlearn.methods]
mine = my_method:MineTrainer

[hf_unlearn.measures]
mine = my_measure

[hf_unlearn.attacks]
mine = my_attack
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An installed distribution, a model, its data and a request."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, code in FILES.items():
        (folder / name).write_text(code)
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    rows = [{**row, "person": f"p{i % 12}"} for i, row in enumerate(text_rows(60))]
    data = folder / "data"
    data.mkdir()
    for split, part in (("train", rows[:48]), ("test", rows[48:])):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    ErasureRequest.records(["p1", "p2", "p3"], column="person").save(folder / "request.json")
    for name, seed in (("model", 0), ("retrained", 1)):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


AUDIT = ["--dataset_name", "data", "--holdout_split", "test", "--request", "request.json", "--use_cpu", "true"]
AUDIT += ["--retrained", "retrained", "--threat_model", "extraction", "--audit_max_new_tokens", "4"]


def rows_of(path):
    return {row["measure"]: row for row in json.loads(path.read_text())["audit"]["rows"]}


def test_the_command_audits_with_a_measure_and_an_attack_of_ones_own(folder):
    done = run(folder, "-m", "hf_unlearn.cli", "audit", "--model_name_or_path", "model", "--original", "model", *AUDIT)
    assert done.returncode in (0, 1, 3), done.stderr[-3000:]
    rows = rows_of(folder / "audit/result.json")
    assert rows["first_token_is_right"]["verdict"]["surface"] == "verbatim"
    for measure in ("extraction_strength_shouted", "answer_probability_shouted"):
        assert rows[measure]["verdict"]["surface"] == "knowledge" and rows[measure]["unlearned"]["n"] == [12]
    # Whether other rows are there does not depend on those that were added.
    assert {"verbatim_extraction", "rouge_l_recall", "answer_f1", "answer_bleu"} <= set(rows)


def test_a_method_of_ones_own_is_listed_and_runs_in_the_recipe(folder):
    listed = run(folder, "-m", "hf_unlearn.cli", "methods")
    assert any(line.split()[0] == "mine" for line in listed.stdout.splitlines() if line.strip())
    training = ["--max_steps", "2", "--report_to", "none", "--save_strategy", "no", "--output_dir", "out"]
    done = run(
        folder,
        ROOT / "recipes/unlearn.py",
        "--method",
        "mine",
        "--model_name_or_path",
        "model",
        *training,
        *AUDIT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "out/result.json").read_text())["run"]["method"] == "mine"
    assert "first_token_is_right" in rows_of(folder / "out/result.json")
    assert (folder / "out/model/model.safetensors").is_file()
