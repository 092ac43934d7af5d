"""`hf-unlearn methods`, and the methods that an installed package of a user adds to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_unlearn.methods import METHODS


ROOT = Path(__file__).resolve().parents[2]

MINE = '''
from dataclasses import dataclass, field

from hf_unlearn import TargetLogits, UnlearningConfig, UnlearningTrainer


@dataclass
class MineConfig(UnlearningConfig):
    """Options of [`MineTrainer`]."""

    power: float = field(default=2.0, metadata={"help": "Exponent."})


class MineTrainer(UnlearningTrainer):
    """Ascend on a power of the loss.

    Source: Jane Doe, 2026-10.
    """

    config_class = MineConfig
    bounded = False

    def forget_loss(self, forget: TargetLogits):
        return -forget.token_mean((-forget.log_probs) ** self.args.power)
'''


@pytest.fixture
def plugin(tmp_path):
    """A folder with an installed distribution that has the method `mine`; gives what makes others of it."""

    def install(entry: str = "mine = mine:MineTrainer", code: str = MINE) -> dict:
        (tmp_path / "mine.py").write_text(code)
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hf_unlearn.methods]\n{entry}\n")
        return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    return install


def run(environment: dict, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )


def test_the_list_imports_no_torch():
    code = (
        "import sys; from hf_unlearn.cli.main import main; main(['methods']); main(['methods', 'npo']); "
        "main(['methods', '--format', 'json']); assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = run(dict(os.environ), "-c", code)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_a_method_of_an_installed_package_is_listed_and_described(plugin):
    environment = plugin()
    listed = run(environment, "-m", "hf_unlearn.cli", "methods")
    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()[1 : len(METHODS) + 2]}
    assert set(rows) == {*METHODS, "mine"} and rows["mine"].endswith("  Ascend on a power of the loss.")
    shown = run(environment, "-m", "hf_unlearn.cli", "methods", "mine")
    assert shown.returncode == 0, shown.stderr
    assert "MineTrainer" in shown.stdout and "power=2.0" in shown.stdout and "Jane Doe, 2026-10" in shown.stdout


def test_the_recipe_takes_it(plugin):
    done = run(plugin(), "recipes/unlearn.py", "--method", "mine", "--help")
    assert done.returncode == 0, done.stderr
    assert "--power" in done.stdout


def test_a_name_that_is_taken_is_left_out_with_a_warning(plugin):
    done = run(plugin(entry="npo = mine:MineTrainer"), "-m", "hf_unlearn.cli", "methods")
    assert done.returncode == 0 and "Ascend on a power" not in done.stdout
    assert "a method named 'npo', which hf_unlearn has already" in done.stderr


@pytest.mark.parametrize(
    ("entry", "code", "reason"),
    [
        ("mine = mine:MineConfig", MINE, "make it a subclass of hf_unlearn.UnlearningTrainer"),
        ("mine = mine:MineTrainer", "import not_there", "No module named 'not_there'"),
        ("mine = mine:MineTrainer", MINE.replace("Source:", "By"), "does not say where it is from"),
    ],
)
def test_a_package_that_is_broken_is_named(plugin, entry, code, reason):
    done = run(plugin(entry, code), "-m", "hf_unlearn.cli", "methods", "mine")
    assert done.returncode != 0
    assert f"mine adds {entry} to hf_unlearn.methods, which cannot be used" in done.stderr
    assert reason in done.stderr and "Either repair that package" in done.stderr


def test_a_package_that_is_broken_does_not_hide_the_other_methods(plugin):
    done = run(plugin(code="import not_there"), "-m", "hf_unlearn.cli", "methods")
    assert done.returncode == 0 and {line.split()[0] for line in done.stdout.splitlines() if line} > set(METHODS)
    assert done.stderr.startswith("mine is left out: mine adds mine = mine:MineTrainer to hf_unlearn.methods")
