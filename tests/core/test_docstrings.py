"""Every public definition is documented, and where it takes or returns arrays, with their shapes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

ARRAYS = re.compile(r"\b(Bools|Ints|Floats|NDArray|ArrayLike|Tensor)\b")

SHAPE = re.compile(r"(?<![\w\])])\[[^\]]*\]")
"""``[n]``, ``[blocks, d]``, ``[]`` for a scalar; not the bracket of an index."""


@dataclass
class Class:
    """What a class offers, read from the source."""

    bases: list[str]
    documented: dict[str, str] = field(default_factory=dict[str, str])
    members: set[str] = field(default_factory=set[str])
    protocol: bool = False


@dataclass
class Definition:
    """A public function, method or class, and all that is written about it."""

    name: str
    docs: list[str]
    arrays: bool


Function = ast.FunctionDef | ast.AsyncFunctionDef

parsed = cache(ast.parse)


def arrays_in(*annotations: ast.expr | None) -> bool:
    return any(a is not None and ARRAYS.search(ast.unparse(a)) for a in annotations)


def function_arrays(node: Function) -> bool:
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named += filter(None, (node.args.vararg, node.args.kwarg))
    return arrays_in(node.returns, *(a.annotation for a in named))


def is_overload(node: Function) -> bool:
    return "overload" in map(ast.unparse, node.decorator_list)


def base_name(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0].split(".")[-1]


def read_class(node: ast.ClassDef) -> Class:
    bases = [base_name(base) for base in node.bases]
    read = Class(bases, protocol="Protocol" in bases)
    for inner in node.body:
        if isinstance(inner, Function) and not inner.name.startswith("_"):
            read.members.add(inner.name)
            if doc := ast.get_docstring(inner):
                read.documented[inner.name] = doc
        elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            read.members.add(inner.target.id)
        if isinstance(inner, Function) and inner.name == "__init__":
            stored = (n for n in ast.walk(inner) if isinstance(n, ast.Attribute))
            read.members |= {n.attr for n in stored if isinstance(n.ctx, ast.Store)}
    return read


def classes_in(sources: dict[str, str]) -> dict[str, Class]:
    return {
        node.name: read_class(node)
        for source in sources.values()
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.ClassDef)
    }


def members(name: str, classes: dict[str, Class]) -> set[str]:
    if name not in classes:
        return set()
    return classes[name].members.union(*(members(b, classes) for b in classes[name].bases))


def inherited(name: str, method: str, classes: dict[str, Class]) -> list[str]:
    """The docstrings of a method in the bases, and in the protocols that a class fulfils."""
    found: list[str] = []
    todo = list(classes[name].bases)
    own = members(name, classes)
    todo += [n for n, c in classes.items() if c.protocol and n != name and c.members <= own]
    for base in todo:
        if base in classes and base != name:
            doc = classes[base].documented.get(method)
            found += [doc] if doc else inherited(base, method, classes)
    return found


def definitions(module: str, source: str, classes: dict[str, Class]) -> Iterator[Definition]:
    """The public definitions of a module; private ones and those inside functions are left out."""
    for node in parsed(source).body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        own = [ast.get_docstring(node) or ""]
        name = f"{module}:{node.name}"
        if isinstance(node, Function):
            if not is_overload(node):  # the one that they are forms of has the words
                yield Definition(name, own, function_arrays(node))
            continue
        fields = [
            n
            for n in node.body
            if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")
        ]
        held = arrays_in(*(n.annotation for n in fields))
        for n in node.body:
            if isinstance(n, Function) and n.name == "__init__":
                held |= function_arrays(n)
                for argument in n.args.args:
                    own += inherited(node.name, argument.arg, classes)
        notes = [  # the docstring, and those of fields
            str(n.value.value)
            for n in node.body
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        ]
        yield Definition(name, own + notes if own[0] else own, held)
        for n in node.body:
            if isinstance(n, Function) and not n.name.startswith("_"):
                if any(ast.unparse(d).endswith(".setter") for d in n.decorator_list):
                    continue
                docs = [ast.get_docstring(n) or "", *inherited(node.name, n.name, classes)]
                yield Definition(f"{name}.{n.name}", docs, function_arrays(n))


@cache
def all_sources() -> dict[str, str]:
    return {
        f"{folder}/{path.relative_to(ROOT / folder).with_suffix('')}": path.read_text("utf-8")
        for folder in ("cahp_opt", "solvers")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if folder == "solvers" or path.relative_to(ROOT / folder).parts[0] != "solvers"
    }


def undocumented(sources: dict[str, str]) -> list[str]:
    classes = classes_in(sources)
    return [
        d.name
        for module, source in sources.items()
        for d in definitions(module, source, classes)
        if not any(d.docs)
    ]


def shapeless(sources: dict[str, str]) -> list[str]:
    classes = classes_in(sources)
    return [
        d.name
        for module, source in sources.items()
        for d in definitions(module, source, classes)
        if d.arrays and any(d.docs) and not any(SHAPE.search(doc) for doc in d.docs)
    ]


def test_every_public_definition_has_a_docstring() -> None:
    assert undocumented(all_sources()) == []


def test_docstrings_name_the_shapes_of_arrays() -> None:
    assert shapeless(all_sources()) == []


PLANTED = '''
class Follower(Protocol):
    """Follows."""

    @property
    def kept(self) -> Bools:
        """The keep-set, bool ``[n]``."""

class Own:
    """Follows something."""

    def __init__(self, kept: Bools) -> None:
        self.kept = kept

    def gains(self) -> Floats:
        """The gains."""

    def silent(self) -> None: ...

class Heir(Own):
    """Another."""

    def gains(self) -> Floats: ...

def entry(values: Floats) -> float:
    """The first of ``values[0]``."""

def all_of(values: Floats) -> Floats:
    """The same, ``[n]``."""

def _private(values: Floats) -> None: ...
'''


def test_what_is_missing_is_found() -> None:
    sources = {"planted": PLANTED}
    assert undocumented(sources) == ["planted:Own.silent"]
    assert shapeless(sources) == ["planted:Own.gains", "planted:Heir.gains", "planted:entry"]
