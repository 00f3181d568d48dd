"""Small faults that can be put into a module: the mutations of its syntax tree."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = ("any all", "min max", "minimum maximum", "amin amax", "argmin argmax", "floor ceil", "zeros ones")
_SWAPS = {a: b for pair in map(str.split, _PAIRS) for a, b in (pair, pair[::-1])}
Path = tuple[tuple[str, int | None], ...]
"""The way to a node from the module's root: field and index of each step."""
_SKIPPED = {"annotation", "returns", "decorator_list", "bases", "exc", "msg"}  # types, and the text of errors


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        line: line of the module, from 1.
        scope: name of the class and function that it is in; empty at the module's level.
        before: code that is replaced.
        after: code in its place.
        path: the way to the node.
        node: the new node.
    """

    line: int
    scope: str
    before: str
    after: str
    path: Path
    node: ast.AST


def mutations(source: str) -> list[Mutation]:
    """Return all mutations of a module's source."""
    return list(_of_node(ast.parse(source), (), ""))


def mutated(source: str, mutation: Mutation) -> str:
    """Return the source with one mutation; without comments."""
    tree = ast.parse(source)
    parent: ast.AST = tree
    for field, index in mutation.path[:-1]:
        parent = _child(parent, field, index)
    field, index = mutation.path[-1]
    if index is None:
        setattr(parent, field, mutation.node)
    else:
        getattr(parent, field)[index] = mutation.node
    return ast.unparse(ast.fix_missing_locations(tree))


def _child(node: ast.AST, field: str, index: int | None) -> ast.AST:
    return getattr(node, field) if index is None else getattr(node, field)[index]


def _of_node(node: ast.AST, path: Path, scope: str) -> Iterator[Mutation]:
    """Yield the mutations of a node and all below it."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}".lstrip(".")
    for new in _variants(node):
        before, after = (_text(n) for n in (node, new))
        yield Mutation(node.lineno, scope, before, after, path, new)  # type: ignore[attr-defined]
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield from _of_node(child, (*path, (field, index)), scope)
        if field in ("test", "ifs"):
            yield from _negated(value, (*path, (field, None)), scope)


def _negated(value: ast.expr | list[ast.expr], path: Path, scope: str) -> Iterator[Mutation]:
    """Yield the negations of a condition, or of each of a comprehension's; without those that other mutations make."""
    (field, _), several = path[-1], isinstance(value, list)
    for index, test in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if isinstance(test, ast.UnaryOp) or (isinstance(test, ast.Compare) and len(test.ops) == 1):
            continue
        new = ast.UnaryOp(ast.Not(), copy.deepcopy(test))
        place = (*path[:-1], (field, index if several else None))
        yield Mutation(test.lineno, scope, _text(test), _text(new), place, new)


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what can stand in a node's place."""
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:index], other(), *ops[index + 1 :]])
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(op)]())
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=bool(value)):
            yield _with(node, value=not value)
        case ast.Constant(value=int(value)):
            yield _with(node, value=value + 1)
        case ast.Constant(value=float(value)):
            yield _with(node, value=2 * value if value else 1.0)
        case ast.Call(func=ast.Name(id=name) as function) if name in _SWAPS:
            yield _with(node, func=_with(function, id=_SWAPS[name]))
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in _SWAPS:
            yield _with(node, func=_with(function, attr=_SWAPS[name]))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield ast.Pass(lineno=node.lineno)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """Return a copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
