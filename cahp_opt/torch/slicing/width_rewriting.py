"""Functions rewritten from their source, so that the heads' output gets a width of its own.

``batch, length, width = states.shape`` and, at the end, ``output.reshape(batch, length, width)`` holds
only while all heads are there. The copy of such a forward says ``self.cahp_width`` instead, wherever a
width gives the shape of what is between the projections and the output projection, and in
``width // self.num_heads``. Everything else stays the author's code, line numbers included. Nothing here
is trusted: the check of every slice compares what it computes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, cast

WIDTH = "cahp_width"
"""Attribute of an attention module that was cut: the width of its heads' output."""

_SHAPING = ("view", "reshape")
"""Methods of a tensor whose arguments are a shape."""


@dataclass(frozen=True)
class Words:
    """What a forward calls its parts.

    Args:
        projections: attributes that make queries, keys and values.
        out: the attribute that holds the output projection; empty if another module runs it.
        heads: attributes that hold a number of heads.
        widths: attributes that may hold a width.
    """

    projections: tuple[str, ...]
    out: str
    heads: tuple[str, ...]
    widths: tuple[str, ...]


def rewritten(function: object, words: Words) -> FunctionType | None:
    """A copy of a forward whose heads' output has a width of its own; None if it needs none, or its source
    is not at hand.

    Args:
        function: the forward, with the wrappers of its decorators around it, if it has any.
        words: what it calls its parts.
    """
    layers = _layers(function)
    found = _rewritten(layers[-1], words) if layers else None
    for wrapper, inner in zip(layers[-2::-1], layers[:0:-1], strict=True):
        found = found and _rewrapped(wrapper, inner, found)
    return found


def _layers(function: object) -> list[FunctionType]:
    """A function and those that it wraps, the innermost last; empty if one is not written in Python."""
    found = list[FunctionType]()
    while isinstance(function, FunctionType):
        found.append(function)
        if "__wrapped__" not in vars(function):
            return found
        function = vars(function)["__wrapped__"]
    return []


def _rewritten(function: FunctionType, words: Words) -> FunctionType | None:
    code = function.__code__
    if code.co_freevars or not {*code.co_names} & {*_SHAPING}:
        return None
    try:
        lines, first = inspect.findsource(code)
        alone = ast.parse(textwrap.dedent("".join(inspect.getblock(lines[first:]))))
    except (OSError, TypeError, SyntaxError):  # of a lambda there is a part of a line
        return None
    if not _rewrite(alone, code.co_name, 1, words):
        return None
    # The whole file, because how a call is compiled depends on what it imports.
    tree = ast.parse("".join(lines))
    same = _compiled(tree, code)
    if same is None or _steps(same) != _steps(code):
        return None  # the source has changed since it was imported
    _rewrite(tree, code.co_name, code.co_firstlineno, words)
    changed = _compiled(ast.fix_missing_locations(tree), code)
    return None if changed is None else _with_code(function, changed)


def _rewrite(tree: ast.Module, name: str, line: int, words: Words) -> bool:
    """Rewrite the function of this name that begins in this line; whether that changed it."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for node in functions:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if (node.name, first) == (name, line) and node.args.args:
            rewriter = _Rewriter(node.args.args[0].arg, words)
            node.body = rewriter.all(node.body)
            return rewriter.changes > 0
    return False


def _compiled(tree: ast.Module, like: CodeType) -> CodeType | None:
    """The code of the function of a module that is at the place of ``like``."""
    codes = [compile(tree, like.co_filename, "exec", dont_inherit=True)]
    for code in codes:
        if (code.co_name, code.co_firstlineno) == (like.co_name, like.co_firstlineno):
            return code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return None


def _steps(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_varnames


def _with_code(function: FunctionType, code: CodeType) -> FunctionType:
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return _named_like(function, made)


def _rewrapped(
    wrapper: FunctionType, inner: FunctionType, changed: FunctionType
) -> FunctionType | None:
    """The wrapper around ``changed`` instead of ``inner``; None if it does not hold that in one variable."""
    cells = wrapper.__closure__ or ()
    held = [_held_by(cell) is inner for cell in cells]
    if held.count(True) != 1:
        return None
    closure = tuple(CellType(changed) if hit else c for c, hit in zip(cells, held, strict=True))
    code, defaults = wrapper.__code__, wrapper.__defaults__
    made = FunctionType(code, wrapper.__globals__, wrapper.__name__, defaults, closure)
    made.__kwdefaults__ = wrapper.__kwdefaults__
    made = _named_like(wrapper, made)
    vars(made)["__wrapped__"] = changed
    return made


def _held_by(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _named_like(function: FunctionType, made: FunctionType) -> FunctionType:
    vars(made).update(vars(function))
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    return made


class _Rewriter(ast.NodeTransformer):
    """Follows which names hold what is between the projections and the output projection, in the order of
    the statements, and replaces widths there.

    Args:
        me: the name of the module in the function, ``self``.
        words: what the function calls its parts.
    """

    def __init__(self, me: str, words: Words) -> None:
        self.me, self.words = me, words
        self.between: set[str] = set()
        self.widths: set[str] = set()
        self.changes = 0

    def all(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The statements, each rewritten with what is known after those before it."""
        return [cast("ast.stmt", self.visit(statement)) for statement in statements]

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        node.value = self._expression(node.value)
        for target in node.targets:
            self._bind(target, node.value)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:
            node.value = self._expression(node.value)
            self._bind(node.target, node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AugAssign:
        node.value = self._expression(node.value)
        if isinstance(node.target, ast.Name) and self._is_between(node.value):
            self.between.add(node.target.id)
        return node

    def visit_If(self, node: ast.If) -> ast.If:
        node.test = self._expression(node.test)
        before = set(self.between), set(self.widths)
        node.body = self.all(node.body)
        between, widths = self.between, self.widths
        self.between, self.widths = before
        node.orelse = self.all(node.orelse)
        self.between |= between
        self.widths &= widths
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        node.iter = self._expression(node.iter)
        for _ in range(2):  # what one turn sets, the next one reads
            self._bind(node.target, node.iter)
            node.body = self.all(node.body)
        node.orelse = self.all(node.orelse)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node  # has names of its own

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr in _SHAPING
            and self._is_between(function.value)
        ):
            node.args = [self._with_own_width(argument) for argument in node.args]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.BinOp:
        self.generic_visit(node)
        left, right = node.left, node.right
        if isinstance(node.op, ast.FloorDiv | ast.Div):
            if self._of_me(right) in self.words.heads and self._is_width(left):
                node.left = self._with_own_width(left)
            return node
        # The shape of a tensor, but for its end.
        if isinstance(node.op, ast.Add) and isinstance(right, ast.Tuple) and self._is_between(left):
            node.right = self._with_own_width(right)
        return node

    def _expression(self, node: ast.expr) -> ast.expr:
        return cast("ast.expr", self.visit(node))

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        """Note what a name holds from now on."""
        between, size = self._is_between(value), _is_size(value)
        stored = [n for n in ast.walk(target) if isinstance(n, ast.Name)]
        names = {n.id for n in stored if isinstance(n.ctx, ast.Store)}
        self.between -= names
        self.widths -= names
        if between and not size:
            self.between |= names
        if size and not between and isinstance(target, ast.Tuple):
            self.widths |= {n.id for n in target.elts[-1:] if isinstance(n, ast.Name)}

    def _is_between(self, node: ast.AST) -> bool:
        """Whether an expression has a part that a projection made, and no output projection took."""
        if isinstance(node, ast.Name):
            return node.id in self.between
        if isinstance(node, ast.Call) and self.words.out == self._of_me(node.func):
            return False
        if isinstance(node, ast.Attribute) and self._of_me(node) in self.words.projections:
            return True
        return any(map(self._is_between, ast.iter_child_nodes(node)))

    def _of_me(self, node: ast.expr) -> str | None:
        """``name`` of ``self.name``, or of what is inside of that."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            inner = node.value
            if isinstance(node, ast.Attribute) and isinstance(inner, ast.Name):
                return node.attr if inner.id == self.me else None
            node = inner
        return None

    def _is_width(self, node: ast.AST) -> bool:
        """Whether an expression is the width of the input, by its name."""
        if isinstance(node, ast.Name):
            return node.id in self.widths
        if isinstance(node, ast.Attribute) and self._of_me(node) is None:
            return node.attr in self.words.widths
        return False

    def _with_own_width(self, shape: ast.expr) -> ast.expr:
        """A shape with the width of the heads in place of that of the input."""
        return cast("ast.expr", _InShape(self).visit(shape))

    def own(self, node: ast.AST) -> ast.expr | None:
        """What stands for a node of a shape, if it is a width."""
        mine = isinstance(node, ast.Attribute) and self._of_me(node) in self.words.widths
        if not (mine or self._is_width(node)):
            return None
        self.changes += not mine  # an attribute of the module can follow the heads by itself
        named = ast.Attribute(ast.Name(self.me, ast.Load()), WIDTH, ast.Load())
        return ast.copy_location(named, node)


class _InShape(ast.NodeTransformer):
    """Replaces the widths in a shape."""

    def __init__(self, rewriter: _Rewriter) -> None:
        self.rewriter = rewriter

    def visit(self, node: ast.AST) -> Any:
        return self.rewriter.own(node) or super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.args = [cast("ast.expr", self.visit(a)) for a in node.args]  # x.dim() is no width
        return node


def _is_size(node: ast.expr) -> bool:
    """Whether an expression is ``x.shape`` or ``x.size()``."""
    if isinstance(node, ast.Call) and not node.args and isinstance(node.func, ast.Attribute):
        return node.func.attr == "size"
    return isinstance(node, ast.Attribute) and node.attr == "shape"
