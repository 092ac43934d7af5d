"""A class as its source file has it: what a method says of itself, without the seconds that importing it takes."""

from __future__ import annotations

import ast
from functools import cache, cached_property
from pathlib import Path


_PACKAGE = Path(__file__).parents[1]


class SourceClass:
    """A class of this package, with its `__name__`, its `__doc__` and its attributes with literal values.

    An attribute that is not in its body is looked for in its bases, as far as they are of this package, in their order.
    """

    def __init__(self, module: str, node: ast.ClassDef):
        self.module, self.node = module, node
        self.__name__, self.__doc__ = node.name, ast.get_docstring(node)

    @cached_property
    def lineage(self) -> list[SourceClass]:
        bases = [find_class(self.module, base.id) for base in self.node.bases if isinstance(base, ast.Name)]
        return [self, *(ancestor for base in bases if base for ancestor in base.lineage)]

    @cached_property
    def assigned(self) -> dict[str, ast.Assign | ast.AnnAssign]:
        statements = [node for node in self.node.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        targets = (node.target if isinstance(node, ast.AnnAssign) else node.targets[0] for node in statements)
        return {target.id: node for target, node in zip(targets, statements, strict=True)}

    def __getattr__(self, name: str):
        for ancestor in self.lineage:
            if name in ancestor.assigned:
                value = ancestor.assigned[name].value
                return (
                    find_class(ancestor.module, value.id) if isinstance(value, ast.Name) else ast.literal_eval(value)
                )
        raise AttributeError(f"{self.__name__} has no attribute {name!r} in its source.")

    def defaults(self) -> dict:
        """The fields of a dataclass and their defaults, those of its bases first."""
        found = {}
        for ancestor in reversed(self.lineage):
            for name, node in ancestor.assigned.items():
                if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                    keywords = {item.arg: item.value for item in getattr(node.value, "keywords", ())}
                    found[name] = ast.literal_eval(keywords.get("default", node.value))
        return found


def find_class(module: str, name: str) -> SourceClass | None:
    """The class that a module of this package defines or imports; `None` if it is of another package."""
    for node in _body(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return SourceClass(module, node)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return find_class(node.module, name)
    return None


@cache
def _body(module: str) -> list[ast.stmt]:
    package, *names = module.split(".")
    if package != _PACKAGE.name:
        return []
    path = _PACKAGE.joinpath(*names)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8")).body
