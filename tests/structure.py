"""Measure the structure of the code from its imports and calls, without importing it.

    python tests/structure.py [ROOT] [--stops]

ROOT is a checkout, by default the one that this file is in, so that the code before a change can be compared with the
code after it. Nothing but the standard library is needed.

An arrow is an import of one file of the project by another, at module level or inside a function. The import of a name
that a package re-exports is an arrow to the file that the package has it from. Imports for type checking alone are counted
apart, and make no circles and no floors. A lazy door is a module with a `__getattr__`; an import that needs it is a
hidden arrow. What the `__getattr__` of an `__init__.py` imports is no arrow of its own: it is for users of the package.

A room is a folder of a place, or a file directly in it. Rooms that reach each other are a circle. The floors are the
rooms on the longest path of arrows, where a circle is one room.

The walk follows one parameter from function to function: `walk` says how.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import inf
from pathlib import Path
from typing import NamedTuple


PACKAGE = "hf_unlearn"
FOLDERS = (PACKAGE, "recipes")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Arrow(NamedTuple):
    """A name imported by one file from another. `named` is the file that the import names: the target, or a door to it."""

    source: str
    line: int
    target: str
    named: str
    typing: bool
    hidden: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} -> {self.target}"


class Imported(NamedTuple):
    """What an import statement binds: `name` of `module`, or the module itself."""

    bound: str
    module: str
    name: str | None
    line: int = 0
    typing: bool = False


class Place(NamedTuple):
    """The file that a name is imported from in the end; a module has no `name`. `lazy`: over a module `__getattr__`."""

    path: str
    name: str | None
    lazy: bool = False


def nodes(node: ast.AST, inside: bool = True, typing: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below, and whether they are for type checking alone. `inside` functions and classes too, or not."""
    guarded = isinstance(node, ast.If) and (dotted(node.test) or "").endswith("TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        child_typing = typing or (guarded and child in node.body)
        yield child, child_typing
        if inside or not isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield from nodes(child, inside, child_typing)


def dotted(node: ast.AST | None) -> str | None:
    """`a.b.c`, if the expression is of that form."""
    if isinstance(node, ast.Attribute) and (value := dotted(node.value)):
        return f"{value}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


class Project:
    """The parsed files of a checkout, and where the names in them lead. Files are named by their paths in it."""

    def __init__(self, root: Path):
        paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
        sources = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in paths}
        self.lines = {path: len(source.splitlines()) for path, source in sources.items()}
        self.trees = {path: ast.parse(source, path) for path, source in sources.items()}
        self.names = {path: path[:-3].removesuffix("/__init__").replace("/", ".") for path in sources}
        self.modules = {name: path for path, name in self.names.items()}
        self.top = {path: self._top(path) for path in sources}
        self.arrows = sorted({arrow for path in sources for arrow in self._arrows(path) if arrow.target != path})

    def imported(self, path: str, node: ast.AST) -> list[Imported]:
        """All that is imported below a node."""
        return [item for below, typing in nodes(node) for item in self._bound(path, below, typing)]

    def _bound(self, path: str, node: ast.AST, typing: bool) -> list[Imported]:
        if isinstance(node, ast.Import):
            return [Imported(a.asname or a.name, a.name, None, node.lineno, typing) for a in node.names]
        if isinstance(node, ast.ImportFrom):
            module = self._absolute(path, "." * node.level + (node.module or ""))
            return [Imported(a.asname or a.name, module, a.name, node.lineno, typing) for a in node.names]
        if isinstance(node, ast.Call) and (dotted(node.func) or "").endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                return [Imported("", self._absolute(path, node.args[0].value), None, node.lineno, typing)]
        return []

    def _absolute(self, path: str, module: str) -> str:
        level = len(module) - len(module.lstrip("."))
        if level == 0:
            return module
        package = self.names[path].split(".")
        kept = package[: len(package) - level + path.endswith("__init__.py")]
        return ".".join([*kept, module[level:]]).rstrip(".")

    def _top(self, path: str) -> dict[str, ast.AST | Imported]:
        """What a module binds at its top level: definitions and imports."""
        found: dict[str, ast.AST | Imported] = {}
        for node, typing in nodes(self.trees[path], inside=False):
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.setdefault(node.id, node)
            imported = self._bound(path, node, typing)
            found |= {item.bound: item for item in imported if not typing or item.bound not in found}
        return found

    def follow(self, path: str, item: Imported, seen: frozenset = frozenset()) -> Place | None:
        """Where an import leads; `None` if out of the project."""
        target = self._file(path, item.module)
        return target and self.find(target, None if item.name == "*" else item.name, seen)

    def _file(self, path: str, module: str) -> str | None:
        # A script imports those beside it without a package.
        beside = "" if path.startswith(f"{PACKAGE}/") else f"{self.names[path].rpartition('.')[0]}.{module}"
        return self.modules.get(module) or self.modules.get(beside)

    def find(self, path: str, name: str | None, seen: frozenset = frozenset()) -> Place:
        """Where the module `path` has `name` from, if it is a package; as far as it can be told without running it."""
        if name is None or (path, name) in seen:
            return Place(path, name)
        seen |= {(path, name)}
        bound, door = self.top[path].get(name), self.top[path].get("__getattr__")
        is_package = path.endswith("__init__.py")
        if bound and not (isinstance(bound, Imported) and bound.typing and door):
            behind = self.follow(path, bound, seen) if is_package and isinstance(bound, Imported) else None
            return behind or Place(path, name)
        if is_package and (submodule := self.modules.get(f"{self.names[path]}.{name}")):
            return Place(submodule, None)
        if not door:
            return Place(path, name)
        behind = (self.follow(path, item, seen) for item in self._behind(path, name, seen))
        return next(filter(None, behind), Place(path, name))._replace(lazy=True)

    def _behind(self, path: str, name: str, seen: frozenset) -> Iterator[Imported]:
        """Where a lazy door may have `name` from: an import of it, a table of modules, or a module it falls through to."""
        yield from (item for item in self.imported(path, self.trees[path]) if item.bound == name)
        for statement in self.trees[path].body:
            for module, names in _table(getattr(statement, "value", None)):
                if name in names:
                    known = module if module in self.modules else f"{self.names[path]}.{module.lstrip('.')}"
                    yield Imported(name, known, name)
        for item in self.imported(path, self.top[path]["__getattr__"]):
            if (place := self.follow(path, item, seen)) and place.name is None:
                yield Imported(name, self.names[place.path], name)

    def _arrows(self, path: str) -> Iterator[Arrow]:
        getter = self.top[path].get("__getattr__") if path.endswith("__init__.py") else None
        own = self.imported(path, getter) if getter else []
        modules = {}
        for item in self.imported(path, self.trees[path]):
            place = self.follow(path, item)
            if place and item not in own:
                yield Arrow(path, item.line, place.path, self._file(path, item.module), item.typing, place.lazy)
                if place.name is None:
                    modules[item.bound] = place.path
        for node, typing in nodes(self.trees[path]):
            # `import package.door as door`, and `door.name` later
            if isinstance(node, ast.Attribute) and (door := modules.get(dotted(node.value))):
                if (place := self.find(door, node.attr)).lazy:
                    yield Arrow(path, node.lineno, place.path, door, typing, hidden=True)


def _table(node: ast.AST | None) -> Iterator[tuple[str, list[str]]]:
    """Modules and their names in a literal `{module: [names]}` or `{name: module}`."""
    try:
        table = ast.literal_eval(node)
    except (ValueError, TypeError):
        return
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, (list, tuple, set)):
            yield key, list(value)
        elif isinstance(value, str):
            yield value, [key]


@cache
def _read(root: Path) -> Project:
    return Project(root)


def project(root: str | Path) -> Project:
    """The checkout at `root`, read once."""
    return _read(Path(root).resolve())


# Rooms and arrows


class Measures(NamedTuple):
    rooms: list[str]
    arrows: set[tuple[str, str]]
    typing_arrows: set[tuple[str, str]]
    circles: list[list[str]]
    floors: int
    lines: int


def measure(root: str | Path, place: str = PACKAGE) -> Measures:
    """Rooms of a folder, the distinct arrows between them, circles and floors, and the lines of all its files."""
    here = project(root)
    room_of = {path: path[len(place) + 1 :].split("/")[0] for path in here.trees if _is_under(path, place)}
    arrows: dict[bool, set[tuple[str, str]]] = {False: set(), True: set()}
    for arrow in here.arrows:
        source, target = room_of.get(arrow.source), room_of.get(arrow.target)
        if source and target and source != target:
            arrows[arrow.typing].add((source, target))
    rooms = sorted(set(room_of.values()))
    groups = _groups(rooms, arrows[False])
    return Measures(
        rooms=rooms,
        arrows=arrows[False],
        typing_arrows=arrows[True] - arrows[False],
        circles=[group for group in groups if len(group) > 1],
        floors=_floors(groups, arrows[False]),
        lines=sum(here.lines[path] for path in room_of),
    )


def circles(root: str | Path) -> list[list[str]]:
    """Files of the package that reach each other over imports."""
    here = project(root)
    paths = [path for path in here.trees if _is_under(path, PACKAGE)]
    groups = _groups(paths, {(arrow.source, arrow.target) for arrow in here.arrows if not arrow.typing})
    return [group for group in groups if len(group) > 1]


def _groups(rooms: list[str], arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Each room with those that it reaches and that reach it."""
    targets: dict[str, set[str]] = {room: set() for room in rooms}
    for source, target in arrows:
        targets.get(source, set()).add(target)
    reach = {room: {room} for room in rooms}
    for room, reached in reach.items():
        waiting = [room]
        while waiting:
            new = targets.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
    groups = {tuple(other for other in rooms if other in reach[room] and room in reach[other]) for room in rooms}
    return [list(group) for group in sorted(groups)]


def _floors(groups: list[list[str]], arrows: set[tuple[str, str]]) -> int:
    group_of = {room: index for index, group in enumerate(groups) for room in group}

    @cache
    def floor(index: int) -> int:
        below = {group_of[target] for source, target in arrows if group_of[source] == index} - {index}
        return 1 + max(map(floor, below), default=0)

    return max(map(floor, group_of.values()), default=0)


def imports_between(root: str | Path, source: str, target: str) -> list[str]:
    """Imports of files under the path `target` by files under `source`: for type checking and through doors too."""
    arrows = [arrow for arrow in project(root).arrows if _is_under(arrow.source, source)]
    return [str(arrow) for arrow in arrows if _is_under(arrow.target, target) or _is_under(arrow.named, target)]


def hidden_arrows(root: str | Path, source: str = PACKAGE) -> list[str]:
    """Imports by files under `source` that a module `__getattr__` answers."""
    return [str(arrow) for arrow in project(root).arrows if arrow.hidden and _is_under(arrow.source, source)]


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def long_files(root: str | Path, limit: int = 400) -> dict[str, int]:
    """Files of the package over a limit, and their lines."""
    return {path: n for path, n in project(root).lines.items() if n > limit and _is_under(path, PACKAGE)}


def length_of(root: str | Path, path: str, function: str) -> int:
    """Lines of a function, without its decorators."""
    node = project(root).top[path][function]
    return node.end_lineno - node.lineno + 1


# The walk


class Definition(NamedTuple):
    """A `module` (which has no node), a `function`, a `class` or an `instance` of one. A method has an `owner`."""

    kind: str
    path: str
    node: ast.AST | None = None
    owner: Definition | None = None

    @property
    def name(self) -> str:
        return f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name

    @property
    def receiver(self) -> str | None:
        """The name of `self` or `cls`."""
        takes = self.node.args.args if self.owner and not self.has("staticmethod") else None
        return takes[0].arg if takes else None

    def has(self, *decorators: str) -> bool:
        return any((dotted(item) or "").split(".")[-1] in decorators for item in self.node.decorator_list)


class Definitions:
    """What expressions stand for, where definitions and annotations tell it."""

    def __init__(self, here: Project):
        self.project = here

    def at(self, place: Place | None) -> Definition | None:
        """What is defined at a place, or where that has it from."""
        if place is None or place.name is None:
            return place and Definition("module", place.path)
        node = self.project.top[place.path].get(place.name)
        if isinstance(node, Imported):
            return self.at(self.project.follow(place.path, node))
        kind = "class" if isinstance(node, ast.ClassDef) else "function" if isinstance(node, FUNCTIONS) else None
        return kind and Definition(kind, place.path, node)

    def named(self, path: str, node: ast.AST | None) -> Definition | None:
        """What a name, or an attribute, stands for at the top level of a module."""
        if isinstance(node, ast.Attribute):
            return self.attribute(self.named(path, node.value), node.attr)
        return self.at(self.project.find(path, node.id)) if isinstance(node, ast.Name) else None

    def annotated(self, path: str, node: ast.AST | None) -> Definition | None:
        """An instance of the class in an annotation, which may be quoted, or one of several with `|`."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return self.annotated(path, node.left) or self.annotated(path, node.right)
        found = self.named(path, node)
        return found._replace(kind="instance") if found and found.kind == "class" else None

    def attribute(self, of: Definition | None, name: str) -> Definition | None:
        """A name in a module; a method of a class, or what a field of it is annotated to be."""
        if of is None or of.kind == "function":
            return None
        if of.kind == "module":
            return self.at(self.project.find(of.path, name))
        for node in of.node.body:
            if isinstance(node, FUNCTIONS) and node.name == name:
                return Definition("function", of.path, node, of._replace(kind="class"))
        for node in ast.walk(of.node):
            if isinstance(node, ast.AnnAssign) and dotted(node.target) in (name, f"self.{name}"):
                return self.annotated(of.path, node.annotation)
        return self.inherited(of, name)

    def inherited(self, of: Definition, name: str) -> Definition | None:
        bases = [self.named(of.path, base) for base in of.node.bases]
        found = (self.attribute(base, name) for base in bases if base and base.kind == "class")
        return next(filter(None, found), None)


@dataclass
class Walk:
    """The stops of an argument, and how many of them are in a file that was left before; both up to the trainer too."""

    stops: list[str] = field(default_factory=list)
    returns: int = 0
    to_trainer: tuple[int, int] | None = None


def walk(root: str | Path, path: str, function: str, parameter: str, depth: float = 3) -> Walk:
    """Follow a parameter through the calls of the project, as somebody does who wants to know where it goes.

    A name carries the parameter if it is the parameter, or if it is bound from an expression in which such a name
    occurs: by an assignment, tuples included, a loop, a `with` or a comprehension. An object carries it once something
    that does is stored in an attribute or item of it. The order of the statements plays no part in this.

    A stop is a call that takes such an expression, or is of a method or property of such an object, where the callee is
    a function or class of the project: by its name, as imported, as `module.function`, or as a method of an object
    whose class a constructor, a class method or an annotation tells. A class stands for its constructor. Several
    arguments of one call are one stop, and a call is one stop however often the walk comes by.

    The walk goes on inside with the parameters that the call binds, before it goes on in the caller, and at most
    `depth` calls deep: the calls in the function itself are 1 deep. What only a running program knows (a callable in a
    table, a callback) is not entered.

    A return is a stop in a file that was left before, for another stop or at the end of a call.

    The trainer is reached at the first call that gives such an expression as `forget_dataset=` to a class or to what
    only a running program knows, or that calls an entry of `METHODS`.
    """
    walker = _Walker(Definitions(project(root)))
    walker.enter(walker.definitions.at(Place(path, function)), {parameter}, depth)
    return walker.walk


class _Walker:
    def __init__(self, definitions: Definitions):
        self.definitions, self.walk = definitions, Walk()
        self.entered: dict[tuple[str, str, str], float] = {}  # with how many calls to go
        self.calls: set[ast.AST] = set()
        self.left: set[str] = set()

    def enter(self, function: Definition, parameters: set[str], depth: float) -> None:
        keys = {name: (function.path, function.name, name) for name in parameters}
        new = {name for name, key in keys.items() if depth > self.entered.get(key, 0)}
        self.entered |= {keys[name]: depth for name in new}
        if new:
            scope = _Scope(self.definitions, function, new)
            for node in (node for statement in function.node.body for node in _in_order(statement)):
                self.look(node, scope, depth)

    def look(self, node: ast.AST, scope: _Scope, depth: float) -> None:
        if isinstance(node, ast.Attribute):
            callee = scope.value(node)
            if callee and callee.kind == "function" and callee.has("property", "cached_property"):
                if scope.carries(node.value):
                    self.move(node, scope, callee, {callee.receiver}, depth)
        elif isinstance(node, ast.Call):
            called = scope.value(node.func)
            if self.walk.to_trainer is None and scope.makes_trainer(node, called):
                self.walk.to_trainer = len(self.walk.stops), self.walk.returns
            if called and called.kind in ("function", "class"):
                callee, parameters = scope.enters(node, called)
                if parameters is not None:
                    self.move(node, scope, callee, parameters, depth)

    def move(self, node: ast.AST, scope: _Scope, callee: Definition, parameters: set[str], depth: float) -> None:
        source, target = scope.function.path, callee.path
        if node not in self.calls:
            self.calls.add(node)
            self.walk.stops.append(f"{source}:{node.lineno} -> {target}:{callee.name}")
            self.left |= {source} - {target}
            self.walk.returns += source != target and target in self.left
        self.enter(callee, parameters, depth - 1)
        self.left |= {target} - {source}


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes as they are computed: arguments before the call."""
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)
    yield node


class _Scope:
    """What the names in a function stand for, and which of them carry the argument."""

    def __init__(self, definitions: Definitions, function: Definition, carrying: set[str]):
        self.definitions, self.function = definitions, function
        path, below = function.path, list(ast.walk(function.node))
        parameters = [node for node in below if isinstance(node, ast.arg)]
        names = {node.id for node in below if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        self.known: dict[str, Definition | None] = dict.fromkeys(names)  # what is local is nothing of the module
        self.known |= {node.arg: definitions.annotated(path, node.annotation) for node in parameters}
        for item in definitions.project.imported(path, function.node):
            self.known[item.bound] = definitions.at(definitions.project.follow(path, item))
        if function.receiver:
            kind = "class" if function.has("classmethod") else "instance"
            self.known[function.receiver] = function.owner._replace(kind=kind)
        bindings = [binding for node in below for binding in _bindings(node)]
        for target, value in bindings:
            if isinstance(target, ast.Name) and (found := self.value(value)) and found.kind == "instance":
                self.known[target.id] = found
        self.carrying = set(carrying)
        for _ in bindings:  # as often as a value can be handed on
            self.carrying |= {name for target, value in bindings if self.carries(value) for name in _roots(target)}
        self.carrying |= {"super"} if function.receiver in self.carrying else set()

    def carries(self, expression: ast.AST) -> bool:
        return any(isinstance(node, ast.Name) and node.id in self.carrying for node in ast.walk(expression))

    def value(self, node: ast.AST | None) -> Definition | None:
        """What an expression stands for."""
        path = self.function.path
        if isinstance(node, ast.Name):
            return self.known[node.id] if node.id in self.known else self.definitions.named(path, node)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Call) and dotted(node.value.func) == "super" and self.function.owner:
                return self.definitions.inherited(self.function.owner, node.attr)
            return self.definitions.attribute(self.value(node.value), node.attr)
        made = self.value(node.func) if isinstance(node, ast.Call) else None
        if made and made.kind == "function":
            returned = self.definitions.annotated(made.path, made.node.returns)
            return returned or (made.owner._replace(kind="instance") if made.has("classmethod") else None)
        return made._replace(kind="instance") if made and made.kind == "class" else None

    def makes_trainer(self, call: ast.Call, called: Definition | None) -> bool:
        entry = isinstance(call.func, ast.Subscript) and (dotted(call.func.value) or "").split(".")[-1] == "METHODS"
        given = any(item.arg == "forget_dataset" and self.carries(item.value) for item in call.keywords)
        return entry or given and (called is None or called.kind == "class")

    def enters(self, call: ast.Call, called: Definition) -> tuple[Definition, set[str] | None]:
        """The function that a call enters, and which of its parameters carry the argument; `None`: nothing does."""
        makers = ("__init__", "__post_init__") if called.kind == "class" else ()
        callee = next(filter(None, (self.definitions.attribute(called, name) for name in makers)), called)
        on = call.func.value if isinstance(call.func, ast.Attribute) and called.owner else None
        if not any(self.carries(part) for part in (on, *call.args, *call.keywords) if part):
            return callee, None
        if callee.kind == "class":  # it has no function to enter
            return callee, set()
        if makers and callee.node.name == makers[1]:  # of a dataclass: the arguments are in its fields
            return callee, {callee.receiver}
        return callee, self._bound(call, callee, on)

    def _bound(self, call: ast.Call, callee: Definition, on: ast.AST | None) -> set[str]:
        takes, bound = callee.node.args, set()
        names = [argument.arg for argument in (*takes.posonlyargs, *takes.args)]
        further, further_named = ({argument.arg} if argument else set() for argument in (takes.vararg, takes.kwarg))
        of = on and self.value(on)
        if callee.receiver and not (of and of.kind == "class" and not callee.has("classmethod")):
            names.remove(callee.receiver)
            bound |= {callee.receiver} if on and self.carries(on) else set()
        for index, item in enumerate(call.args):
            if self.carries(item):
                bound |= set(names[index:] if isinstance(item, ast.Starred) else names[index : index + 1]) or further
        given = {*names[: len(call.args)], *(item.arg for item in call.keywords)}
        named = {*names, *(argument.arg for argument in takes.kwonlyargs)}
        for item in call.keywords:
            if self.carries(item):
                bound |= (named - given if item.arg is None else named & {item.arg}) or further_named
        return bound


def _bindings(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """Targets, and the expressions that they are bound from."""
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value:
        return [(node.target, node.value)]
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        return [(node.target, node.iter)]
    if isinstance(node, ast.withitem) and node.optional_vars:
        return [(node.optional_vars, node.context_expr)]
    return []


def _roots(target: ast.AST) -> Iterator[str]:
    """Names that an assignment binds, or in whose attributes or items it stores."""
    if isinstance(target, (ast.Tuple, ast.List)):
        yield from (name for item in target.elts for name in _roots(item))
    elif isinstance(target, (ast.Attribute, ast.Subscript, ast.Starred)):
        yield from _roots(target.value)
    elif isinstance(target, ast.Name):
        yield target.id


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=Path(__file__).resolve().parents[1], help="a checkout")
    parser.add_argument("--stops", action="store_true", help="list the stops of the walk too")
    arguments = parser.parse_args()
    root, recipe = arguments.root, "recipes/unlearn.py"
    for place in (PACKAGE, f"{PACKAGE}/audit"):
        found = measure(root, place)
        print(
            f"{place}: {len(found.rooms)} rooms, {len(found.arrows)} arrows (and {len(found.typing_arrows)} for type "
            f"checking), {len(found.circles)} circles, {found.floors} floors, {found.lines} lines"
        )
        for circle in found.circles:
            print("  circle:", *circle)
    _print_list("circles of files", map(" ".join, circles(root)))
    _print_list("hidden arrows", hidden_arrows(root))
    _print_list("files over 400 lines", map("{0[0]}: {0[1]}".format, long_files(root).items()))
    print(f"main of {recipe}: {length_of(root, recipe, 'main')} lines")
    for depth in (2, 3, inf):
        found = walk(root, recipe, "main", "argv", depth)
        reached = "not reached" if found.to_trainer is None else "{} stops, {} returns".format(*found.to_trainer)
        print(
            f"argv of {recipe}, at most {depth} calls deep: {len(found.stops)} stops, {found.returns} returns; "
            f"to the trainer: {reached}"
        )
    if arguments.stops:
        _print_list("stops", walk(root, recipe, "main", "argv").stops)


def _print_list(title: str, items) -> None:
    items = list(items)
    print(f"{title}: {len(items)}", *items, sep="\n  ")


if __name__ == "__main__":
    main()
