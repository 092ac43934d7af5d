"""The modules and suites where users find them: in an installed wheel, and in a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_unlearn.evaluate_modules.base import EVAL_SUITES, load_metric, load_suite, metric_names, suite_names


ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from pathlib import Path

import hf_unlearn
from hf_unlearn.evaluate_modules.base import EVAL_SUITES, load_metric, load_suite, metric_names, suite_names

inside = Path(hf_unlearn.__file__).parent
assert inside == Path(sys.argv[1]) / "hf_unlearn" and EVAL_SUITES == inside / "eval_suites", (inside, EVAL_SUITES)
results = load_metric("membership_inference").compute(predictions=[2.0, 1.0, 0.0], references=[1, 1, 0])
print("AUC", results["auc"])
print(*metric_names(), *[load_suite(name).name for name in suite_names()])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel installed in it, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Built where it lies and by the backend of this environment: nothing is copied or downloaded.
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT], check=True, timeout=120
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=120)
    return wheel, folder / "site"


def test_the_wheel_has_every_file_of_a_module_and_nothing_from_outside(installed):
    names = zipfile.ZipFile(installed[0]).namelist()
    for name in metric_names():
        for file in (f"{name}.py", "README.md", "app.py", "requirements.txt"):
            assert f"hf_unlearn/eval_suites/{name}/{file}" in names
    assert {f"hf_unlearn/eval_suites/{name}.py" for name in suite_names()} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hf_unlearn"}
    assert not any("__pycache__" in name for name in names)


def test_modules_and_suites_load_from_an_installed_wheel_offline(installed, tmp_path):
    _, site = installed
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, site], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["AUC 1.0", " ".join([*metric_names(), *suite_names()])]


def test_modules_and_suites_load_from_the_checkout():
    assert EVAL_SUITES == ROOT / "eval_suites"
    assert {"extraction_attack", "membership_inference", "perplexity"} <= set(metric_names())
    assert load_metric("perplexity").name == "perplexity" and load_suite("wmdp").name == "wmdp"


@pytest.mark.parametrize("load, names", [(load_metric, metric_names), (load_suite, suite_names)])
def test_an_unknown_name_is_answered_with_those_that_exist(load, names):
    with pytest.raises(ValueError, match=f"There is no .* 'rouge'. There are {', '.join(names())}."):
        load("rouge")
    with pytest.raises(ValueError, match="There is no"):  # a path is no name
        load("../eval_suites/perplexity")
