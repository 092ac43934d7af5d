"""The structure of the package, and the script that measures it (`structure.py`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import structure


try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tree(tmp_path):
    """Write files of a made-up checkout; all folders of the package become packages."""

    def write(files: dict[str, str]) -> Path:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        for folder in [tmp_path / "hf_unlearn", *(tmp_path / "hf_unlearn").rglob("*")]:
            if folder.is_dir() and not (folder / "__init__.py").exists():
                (folder / "__init__.py").write_text("")
        return tmp_path

    return write


def arrows(root: Path) -> list[str]:
    return [str(arrow).replace("hf_unlearn/", "") for arrow in structure.project(root).arrows]


# The script


def test_imports_of_every_form(tree):
    root = tree(
        {
            "hf_unlearn/a/one.py": "import os\nimport hf_unlearn.b\nfrom . import two\nfrom .two import x\n",
            "hf_unlearn/a/two.py": "from ..b.three import x\nfrom .. import b, loose\n",
            "hf_unlearn/b/three.py": "x = 1\n",
            "hf_unlearn/loose.py": "from importlib import import_module\nb = import_module('.b.three', __package__)\n",
            "recipes/run.py": "import other\nfrom hf_unlearn.a.one import y\n",
            "recipes/other.py": "from hf_unlearn import a\n",
        }
    )
    assert arrows(root) == [
        "a/one.py:2 -> b/__init__.py",
        "a/one.py:3 -> a/two.py",
        "a/one.py:4 -> a/two.py",  # which is read whole, whatever has `x` first
        "a/two.py:1 -> b/three.py",
        "a/two.py:2 -> b/__init__.py",
        "a/two.py:2 -> loose.py",
        "loose.py:2 -> b/three.py",
        "recipes/other.py:1 -> a/__init__.py",
        "recipes/run.py:1 -> recipes/other.py",
        "recipes/run.py:2 -> a/one.py",
    ]


def test_an_import_inside_a_function_counts(tree):
    root = tree(
        {"hf_unlearn/a.py": "def f():\n    from .b import x\n", "hf_unlearn/b.py": "from .a import f\nx = 1\n"}
    )
    assert arrows(root) == ["a.py:2 -> b.py", "b.py:1 -> a.py"]
    assert structure.circles(root) == [["hf_unlearn/a.py", "hf_unlearn/b.py"]]
    assert structure.measure(root).circles == [["a.py", "b.py"]]


def test_type_checking_is_counted_apart(tree):
    guarded = "import typing\nif typing.TYPE_CHECKING:\n    from .b import x\nelse:\n    from .c import x\n"
    root = tree({"hf_unlearn/a.py": guarded, "hf_unlearn/b.py": "from .a import y\n", "hf_unlearn/c.py": "x = 1\n"})
    found = structure.measure(root)
    assert found.arrows == {("a.py", "c.py"), ("b.py", "a.py")} and found.typing_arrows == {("a.py", "b.py")}
    assert (found.circles, structure.circles(root), found.floors) == ([], [], 3)
    assert structure.imports_between(root, "hf_unlearn/a.py", "hf_unlearn/b.py") == [
        "hf_unlearn/a.py:3 -> hf_unlearn/b.py"
    ]


EAGER = "from .config import Config\nfrom .trainer import *\n"
TABLE = "_MODULES = {'config': ['Config']}\ndef __getattr__(name):\n    ...\n"
BY_NAME = "_MODULES = {'Config': 'hf_unlearn.training.config'}\ndef __getattr__(name):\n    ...\n"
IMPORTING = "def __getattr__(name):\n    from .config import Config\n    return Config\n"
FALLING_THROUGH = "def __getattr__(name):\n    from . import config\n    return getattr(config, name)\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .config import Config\n" + IMPORTING


@pytest.mark.parametrize("door", [EAGER, TABLE, BY_NAME, IMPORTING, FALLING_THROUGH, TYPED])
@pytest.mark.parametrize("use", ["from .training import Config\n", "from . import training\ntraining.Config\n"])
def test_an_import_through_a_door_leads_to_the_file_behind_it(tree, door, use):
    root = tree(
        {
            "hf_unlearn/training/__init__.py": door,
            "hf_unlearn/training/config.py": "class Config: ...\n",
            "hf_unlearn/training/trainer.py": "",
            "hf_unlearn/user.py": use,
        }
    )
    line = len(use.splitlines())
    behind = f"hf_unlearn/user.py:{line} -> hf_unlearn/training/config.py"
    assert structure.hidden_arrows(root) == ([] if door is EAGER else [behind])
    assert (behind in structure.imports_between(root, "hf_unlearn/user.py", "hf_unlearn/training")) is (
        door is not EAGER or line == 1
    )
    if door in (IMPORTING, FALLING_THROUGH):
        assert not any(arrow.startswith("training/__init__.py") for arrow in arrows(root))


def test_what_a_door_hides_is_counted_in_circles(tree):
    root = tree(
        {
            "hf_unlearn/a/__init__.py": TABLE.replace("'config'", "'one'"),
            "hf_unlearn/a/one.py": "from hf_unlearn.b import x\nclass Config: ...\n",
            "hf_unlearn/b.py": "from hf_unlearn.a import Config\nx = 1\n",
        }
    )
    assert structure.circles(root) == [["hf_unlearn/a/one.py", "hf_unlearn/b.py"]]
    assert structure.measure(root).circles == [["a", "b.py"]]


def test_a_name_that_is_a_submodule_too(tree):
    # `split` of the package is the function, as Python has it, and is defined in the module of the same name.
    root = tree(
        {
            "hf_unlearn/request/__init__.py": "from .split import split\n",
            "hf_unlearn/request/split.py": "def split(rows): ...\n",
            "recipes/run.py": "from hf_unlearn.request import split\ndef main(argv):\n    split(argv)\n",
        }
    )
    assert structure.walk(root, "recipes/run.py", "main", "argv").stops == [
        "recipes/run.py:3 -> hf_unlearn/request/split.py:split"
    ]


def test_rooms_and_floors(tree):
    root = tree(
        {
            "hf_unlearn/top.py": "from .left.one import x\nfrom .right import y\n",
            "hf_unlearn/left/one.py": "from ..right import y\nfrom .two import z\nx = 1\n",
            "hf_unlearn/left/two.py": "from ..ground import z\n",
            "hf_unlearn/right.py": "from .left.two import w\ny = 1\n",
            "hf_unlearn/ground.py": "z = 1\n",
        }
    )
    found = structure.measure(root)
    assert found.rooms == ["__init__.py", "ground.py", "left", "right.py", "top.py"]
    assert found.circles == [["left", "right.py"]] and structure.circles(root) == []
    assert (len(found.arrows), found.floors, found.lines) == (5, 3, 9)
    inside = structure.measure(root, "hf_unlearn/left")
    assert (inside.rooms, inside.arrows) == (["__init__.py", "one.py", "two.py"], {("one.py", "two.py")})


def test_lengths(tree):
    function = "@cache\ndef f():\n    return (\n        1\n    )\n"
    root = tree({"hf_unlearn/a.py": function + "\n" * 10, "hf_unlearn/b.py": "", "recipes/c.py": "\n" * 100})
    assert structure.length_of(root, "hf_unlearn/a.py", "f") == 4
    assert structure.long_files(root, limit=14) == {"hf_unlearn/a.py": 15}
    assert structure.long_files(root, limit=15) == {}


THREE_FILES = {
    "recipes/unlearn.py": """
from hf_unlearn import data, job
from hf_unlearn.data import constant

def main(argv=None):
    options, _ = parse(argv)
    rows = data.load(path=options.path)
    constant()
    made = job.Job(rows)
    made.erase()
    data.show(rows)

def parse(argv):
    return argv, None
""",
    "hf_unlearn/data.py": """
def load(path): ...
def constant(): ...
def clean(rows, times): ...
def show(rows): ...
""",
    "hf_unlearn/job.py": """
from .data import clean
from .methods import METHODS

class Job:
    def __init__(self, rows):
        self.rows = clean(rows, 2)

    def erase(self):
        return METHODS["npo"](forget_dataset=self.rows)
""",
}


def test_the_walk_through_three_files(tree):
    found = structure.walk(tree(THREE_FILES), "recipes/unlearn.py", "main", "argv")
    assert found.stops == [
        "recipes/unlearn.py:6 -> recipes/unlearn.py:parse",
        "recipes/unlearn.py:7 -> hf_unlearn/data.py:load",
        "recipes/unlearn.py:9 -> hf_unlearn/job.py:Job.__init__",
        "hf_unlearn/job.py:7 -> hf_unlearn/data.py:clean",  # data.py again
        "recipes/unlearn.py:10 -> hf_unlearn/job.py:Job.erase",  # job.py again, from where the trainer is made
        "recipes/unlearn.py:11 -> hf_unlearn/data.py:show",  # data.py again
    ]
    assert (found.returns, found.to_trainer) == (3, (5, 2))


def test_the_walk_ends_at_its_depth(tree):
    found = structure.walk(tree(THREE_FILES), "recipes/unlearn.py", "main", "argv", depth=1)
    assert (len(found.stops), found.returns, found.to_trainer) == (5, 2, None)


def test_a_function_met_too_deep_is_entered_when_it_is_met_again(tree):
    source = "def main(a):\n    f(a)\n    g(a)\n\ndef f(x):\n    g(x)\n\ndef g(y):\n    h(y)\n\ndef h(z): ...\n"
    found = structure.walk(tree({"recipes/run.py": source}), "recipes/run.py", "main", "a", depth=2)
    assert [stop[-1] for stop in found.stops] == ["f", "g", "g", "h"]


@pytest.mark.parametrize(
    ("body", "stops"),
    [
        ("f(a)", "f"),
        ("f(1, *a)", "f"),
        ("f(1, **a)", "f"),
        ("f(1)", ""),
        ("b = [x for x in a]\n    f(b)", "f"),
        ("with a as b:\n        f(b)", "f"),
        ("d = {}\n    d['a'] = a\n    f(d)", "f"),
        ("f(f(a))", "f f"),
        ("f = a\n    f(a)", ""),  # a local name is not the function of the module
        ("Plain(a)", "Plain"),
        ("Fields(a)", "Fields.__post_init__ f"),
        ("Fields.of(a)", "Fields.of Fields.__post_init__ f"),
        ("Fields.of(a).shown", "Fields.of Fields.__post_init__ f Fields.shown"),
        ("Child(a).run()", "Child.__init__ Parent.__init__ f Child.run Parent.help"),
    ],
)
def test_calls_that_the_walk_follows(tree, body, stops):
    classes = """
from dataclasses import dataclass

class Plain: ...

@dataclass
class Fields:
    x: int

    def __post_init__(self):
        f(self.x)

    @classmethod
    def of(cls, x):
        return cls(x)

    @property
    def shown(self): ...

class Parent:
    def __init__(self, x):
        f(x)

    def help(self): ...

class Child(Parent):
    def __init__(self, x):
        super().__init__(x)

    def run(self):
        self.help()

def f(x, y=None): ...
"""
    root = tree({"recipes/run.py": f"def main(a):\n    {body}\n{classes}"})
    found = structure.walk(root, "recipes/run.py", "main", "a")
    assert [stop.split(":")[-1] for stop in found.stops] == stops.split()


@pytest.mark.parametrize("annotated", ["    b: 'B | None'", "    def __init__(self):\n        self.b: B = make()"])
def test_an_object_keeps_the_class_of_its_annotation(tree, annotated):
    source = f"class A:\n{annotated}\n\nclass B:\n    def go(self): ...\n\ndef main(a: A):\n    a.b.go()\n"
    found = structure.walk(tree({"recipes/run.py": source}), "recipes/run.py", "main", "a")
    assert [stop.split(":")[-1] for stop in found.stops] == ["B.go"]


def test_what_the_script_prints(tree, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["structure.py", str(tree(THREE_FILES)), "--stops"])
    structure.main()
    printed = capsys.readouterr().out
    assert "hf_unlearn: 3 rooms, 1 arrows (and 0 for type checking), 0 circles, 2 floors, 15 lines" in printed
    assert "at most 3 calls deep: 6 stops, 3 returns; to the trainer: 5 stops, 2 returns" in printed
    assert "  recipes/unlearn.py:7 -> hf_unlearn/data.py:load\n" in printed


# The package


def entries(folder: str) -> list[str]:
    """The modules and packages directly in a folder."""
    paths = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return sorted(path.stem for path in paths if path.name != "__init__.py")


def layered() -> set[str]:
    """The modules that have a place in a contract of layers, by their full names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return {
        ".".join(filter(None, [container, sibling.strip(" ()")]))
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract.get("containers", [""])
        for layer in contract["layers"]
        for sibling in re.split(r"[|:]", layer)
    }


def test_no_file_imports_itself_over_others():
    assert structure.circles(ROOT) == []


@pytest.mark.parametrize("place", ["hf_unlearn", "hf_unlearn/audit"])
def test_no_room_imports_itself_over_others(place):
    assert structure.measure(ROOT, place).circles == []


@pytest.mark.parametrize("side", ["training", "methods"])
def test_the_change_of_weights_and_the_audit_do_not_know_each_other(side):
    assert structure.imports_between(ROOT, "hf_unlearn/audit", f"hf_unlearn/{side}") == []
    assert structure.imports_between(ROOT, f"hf_unlearn/{side}", "hf_unlearn/audit") == []


def test_no_import_of_the_package_is_hidden_by_a_lazy_door():
    assert structure.hidden_arrows(ROOT) == []


def test_the_recipe_is_short():
    assert structure.length_of(ROOT, "recipes/unlearn.py", "main") <= 30


def test_the_design_names_every_long_file():
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    long = [path.removeprefix("hf_unlearn/") for path in structure.long_files(ROOT)]
    assert [path for path in long if path not in design] == []


@pytest.mark.parametrize("place", ["hf_unlearn", "hf_unlearn/audit"])
def test_every_module_has_a_layer(place):
    names = [f"{place.replace('/', '.')}.{name}" for name in entries(place)]
    assert [name for name in names if name not in layered()] == []
