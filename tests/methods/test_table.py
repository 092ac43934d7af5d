"""The table of the methods: what it promises to those who read it, and to those who add to it."""

import ast
import doctest
import inspect
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
from transformers import TrainingArguments

import hf_unlearn
from hf_unlearn import methods as methods_module
from hf_unlearn.methods import METHODS, register_method
from hf_unlearn.methods.describe import describe
from hf_unlearn.methods.npo import NPOConfig, NPOTrainer
from hf_unlearn.training import UnlearningConfig, UnlearningTrainer


class MineTrainer(NPOTrainer):
    """What a user adds.

    Source: Jane Doe, 2026-10.
    """


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(METHODS, "registered", {})


def test_it_is_a_mapping_of_names_to_trainers():
    assert len(METHODS) == len(list(METHODS)) == len(dict(METHODS)) >= 28
    assert "npo" in METHODS and METHODS["npo"] is NPOTrainer and dict(METHODS.items())["npo"] is NPOTrainer
    assert "nop" not in METHODS and METHODS.get("nop") is None
    with pytest.raises(KeyError):
        METHODS["nop"]
    assert all(issubclass(trainer, UnlearningTrainer) for trainer in METHODS.values())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_names_of_a_method_are_public_by_its_line_in_the_table_alone(name):
    trainer, config = METHODS[name], METHODS[name].config_class
    assert config.__name__ == trainer.__name__.removesuffix("Trainer") + "Config"
    assert trainer.__module__ == config.__module__
    for door in (hf_unlearn, methods_module):
        for public in (trainer, config):
            assert getattr(door, public.__name__) is public
            assert public.__name__ in door.__all__ and public.__name__ in dir(door)


def test_a_name_that_is_not_there_is_an_attribute_error():
    for door in (hf_unlearn, methods_module):
        with pytest.raises(AttributeError, match="NopTrainer"):
            getattr(door, "NopTrainer")  # noqa: B009
    assert hf_unlearn.TargetLogits and hf_unlearn.register_method == register_method


def test_one_method_imports_neither_the_others_nor_do_the_names_import_torch():
    code = (
        "import sys, hf_unlearn; sorted(hf_unlearn.METHODS); assert not {'torch', 'transformers'} & set(sys.modules); "
        "from hf_unlearn import NPOTrainer; print(sorted(m for m in sys.modules if m.startswith('hf_unlearn.methods.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert ast.literal_eval(run.stdout) == ["hf_unlearn.methods.npo", "hf_unlearn.methods.table"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_is_read_from_the_file_is_what_the_class_is(name):
    assert describe(name) == describe(name, METHODS[name])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_example_of_a_method_is_one_that_could_be_run(name):
    trainer = METHODS[name]
    assert inspect.cleandoc(trainer.__doc__).count("\nExample:\n") == 1
    lines = [example.source for example in doctest.DocTestParser().get_examples(trainer.__doc__)]
    tree = ast.parse("".join(lines))
    (doors,) = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "hf_unlearn")
    imported = {alias.name for alias in doors.names}
    assert imported == {trainer.__name__, trainer.config_class.__name__}
    calls = {call.func.id: call for call in ast.walk(tree) if isinstance(call, ast.Call) and hasattr(call.func, "id")}
    options = {item.arg: ast.literal_eval(item.value) for item in calls[trainer.config_class.__name__].keywords}
    assert options.keys() <= {field.name for field in fields(trainer.config_class)}
    trainer.config_class(**options, use_cpu=True)  # they can be set together
    call = calls[trainer.__name__]
    inspect.signature(UnlearningTrainer).bind(*call.args, **{item.arg: item.value for item in call.keywords})
    assert lines[-1] == "trainer.train()\n"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bounds_and_choices_that_a_config_declares_are_kept(name):
    config = METHODS[name].config_class
    wrong = {option: (-1, "not be negative") for option in config.not_negative}
    wrong |= {option: (0, "be positive") for option in config.positive}
    wrong |= {option: (0, "be at least 1") for option in ("singular_rank", *config.at_least_one)}
    own = {field.name: field.metadata.get("choices") for field in fields(config)}
    chosen = {option for option, choices in own.items() if choices and not hasattr(TrainingArguments, option)}
    wrong |= {option: ("nonsense", "none of " + ", ".join(own[option])) for option in chosen}
    assert wrong.keys() >= {"update_rule", "singular_part", "singular_rank"}
    if name in ("scrub", "task_vector"):
        del wrong["update_rule"]  # refused whatever it is
    for option, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=f"You set {option}=.*{message}"):
            config(output_dir="unlearned", use_cpu=True, **{option: value})


def test_a_method_of_a_user_is_registered(registered):
    register_method("mine", MineTrainer)
    assert METHODS["mine"] is MineTrainer and "mine" in METHODS and "mine" in list(METHODS)
    assert describe("mine")["sources"] == ["Jane Doe, 2026-10"]
    assert describe("mine") == describe("npo") | {
        "name": "mine",
        "trainer": "MineTrainer",
        "summary": "What a user adds.",
        "sources": ["Jane Doe, 2026-10"],
    }
    register_method("mine", MineTrainer)  # as a module does that is loaded again


@dataclass
class NoConfig:
    """Not one of a trainer."""


def test_what_is_no_method_is_not_registered(registered):
    with pytest.raises(ValueError, match="a method named 'npo' already"):
        register_method("npo", MineTrainer)
    register_method("mine", MineTrainer)
    with pytest.raises(ValueError, match="a method named 'mine' already"):
        register_method("mine", NPOTrainer)
    for other in (NPOConfig, "NPOTrainer", None):
        with pytest.raises(TypeError, match="subclass of hf_unlearn.UnlearningTrainer"):
            register_method("other", other)
    for config in (None, NoConfig):
        with pytest.raises(TypeError, match="subclass of hf_unlearn.UnlearningConfig"):
            register_method("other", type("Other", (MineTrainer,), {"config_class": config}))
    with pytest.raises(ValueError, match="does not say where it is from"):
        register_method("other", type("Other", (MineTrainer,), {"__doc__": "Out of nowhere."}))
    assert "other" not in METHODS and issubclass(MineTrainer.config_class, UnlearningConfig)
