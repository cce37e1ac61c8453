"""The changes that `scripts/mutants.py` makes: one operator, number, condition, argument or returned value at a time.

+ and -, * and /, ** to *, // and % to *, & and |, << and >>      < and <=, > and >=, == and !=, is, in, not
n to n + 1, 1 to 0, True and False                                and and or; -x and not x to x
a condition to its opposite; a keyword argument left out          min and max, any and all, floor and ceil, ...
a returned value to None; an augmented assignment left out

    python -m scripts.mutations mixer/data/order.py         prints the mutants of a module
"""

import argparse
import ast
import collections
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_PAIRS = [("min", "max"), ("minimum", "maximum"), ("any", "all"), ("argmin", "argmax"), ("floor", "ceil"),
          ("zeros", "ones"), ("zeros_like", "ones_like"), ("rint", "floor")]  # fmt: skip
_FUNCTIONS = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """One change of one module.

    Attributes:
      module: path of the module, from the root of the repository.
      line: the text of the line where the change begins.
      old, new: the code that is replaced, and its replacement, each on one line.
      number: counts mutants of the same text in a module.
      source: the whole changed module.
    """

    module: str
    line: str
    old: str
    new: str
    number: int
    source: str

    @property
    def key(self) -> str:
        """Its name among the results. Unlike a line number, it stays the same when other lines change."""
        return f"{self.module} | {self.line} | {self.old} -> {self.new} | {self.number}"


def changes(node: Any) -> Iterator[tuple[Any, ast.AST]]:
    """Yields changes of one node: what is replaced, which is the node or a condition in it, and the replacement."""
    match node:
        case ast.If(test) | ast.While(test) | ast.IfExp(test) if not isinstance(test, ast.Compare):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(_, _, conditions):
            yield from ((test, ast.UnaryOp(ast.Not(), test)) for test in conditions)
    yield from ((node, new) for new in _replacements(node))


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in _BINARY:
            yield ast.BinOp(left, _BINARY[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            if type(operator) in _BINARY:
                yield ast.AugAssign(target, _BINARY[type(operator)](), value)
            yield ast.Pass()
        case ast.Compare(left, [operator], right):
            yield ast.Compare(left, [_COMPARISONS[type(operator)]()], right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
            if value == 1:
                yield ast.Constant(value - 1)
        case ast.Return(value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Call(function, arguments, keywords):
            for keyword in keywords:
                if keyword.arg not in (None, "strict"):
                    yield ast.Call(function, arguments, [other for other in keywords if other is not keyword])
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
            if isinstance(function, ast.Attribute) and name in _FUNCTIONS:
                yield ast.Call(ast.Attribute(function.value, _FUNCTIONS[name], ast.Load()), arguments, keywords)
            elif name in _FUNCTIONS:
                yield ast.Call(ast.Name(_FUNCTIONS[name], ast.Load()), arguments, keywords)


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a tree's nodes, but for annotations, decorators, docstrings, f-strings, imports and zip's strict."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # a guard: no data makes it matter
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from nodes(child)


def mutants(root: pathlib.Path, module: str) -> list[Mutant]:
    """Returns all mutants of a module, given by its path from the root of the repository."""
    text = (root / module).read_bytes()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found, counts = [], collections.Counter[tuple[str, ...]]()
    for node in nodes(ast.parse(text)):
        for at, changed in changes(node):
            begin, end = starts[at.lineno - 1] + at.col_offset, starts[at.end_lineno - 1] + at.end_col_offset
            new = ast.unparse(ast.fix_missing_locations(changed))
            if isinstance(changed, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp):
                new = f"({new})"
            source = (text[:begin] + new.encode() + text[end:]).decode()
            line = lines[at.lineno - 1].decode().strip()
            old = " ".join(text[begin:end].decode().split())
            counts[line, old, new] += 1
            found.append(Mutant(module, line, old, new, counts[line, old, new], source))
    return found


def main() -> None:
    """Prints the mutants of the modules that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", metavar="FILE", help="path of a module, from the root of the repository")
    root = pathlib.Path(__file__).resolve().parents[1]
    for module in parser.parse_args().modules:
        print("\n".join(one.key for one in mutants(root, module)))


if __name__ == "__main__":
    main()
