"""One Python file made of several: a module with all that it needs of newllm put in.

So that the modelling file of an exported model is our own source, not a second copy to be kept.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from newllm import __version__

TRAINING_ALONE = frozenset(
    {
        "_without",
        "facts_for_loss",
        "facts_for_mixing",
        "late_decaying",
        "loss",
        "matrices",
        "mixed",
        "mixing",
        "mixing_matrices",
        "nats",
        "without_counts",
        "without_memories",
    }
)
"""Methods of models that only our own training and scoring call; they are left out."""

REFERENCE = {
    "newllm.model.counts": "newllm.model.counts.reference",
    "newllm.model.context": "newllm.export.context_read",
    "newllm.model.kernels": "newllm.model.kernels.reference",
    "newllm.model.recall": "newllm.model.recall.reference",
}
"""Where the definitions of a module's names are, without our kernels for CPUs."""

OPTIONAL = ("triton",)
"""Packages that the bundle does without where they cannot be imported."""

STAND_INS = {
    "ModelSettings": "ModelSettings = Any  # its fields are those of NewLLMConfig",
    "_jit": """

def _jit(kernel: Any = None, **options: Any) -> Any:
    \"""`triton.jit`; without Triton a kernel is a function that is never called.\"""
    if triton is None:
        return kernel or _jit
    return triton.jit(kernel, **options)""",
}
"""Names that are defined otherwise in the bundle."""


def bundle(module: str) -> str:
    """Source of a module that imports nothing of newllm.

    Definitions come in the order in which they need each other, with their comments; one that is
    imported under another name is defined under that. A name that two modules define differently
    raises ValueError.
    """
    main = _Module.find(module)
    parts = _Parts()
    parts.add_all(main)
    header = (
        f'"""{ast.get_docstring(main.tree)}\n\nMade by newllm {__version__} from its own source; '
        'changes belong there.\n"""\n\nfrom __future__ import annotations\n\n'
    )
    stand_ins = "\n".join(STAND_INS.values())
    return header + "\n\n".join([parts.import_lines(), stand_ins, *parts.sources]) + "\n"


@dataclass(frozen=True)
class _Module:
    """One source file, taken apart."""

    name: str
    lines: list[str]
    tree: ast.Module

    @classmethod
    def find(cls, name: str) -> _Module:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        text = Path(spec.origin).read_text(encoding="utf-8")
        return cls(name, text.splitlines(), ast.parse(text))

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Name -> statement at the top of the file that defines it."""
        found: dict[str, ast.stmt] = {}
        for statement in self.tree.body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                found[statement.name] = statement
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                targets = statement.targets if isinstance(statement, ast.Assign) else [
                    statement.target]  # fmt: skip
                for target in targets:
                    names = [node for node in ast.walk(target) if isinstance(node, ast.Name)]
                    found |= {node.id: statement for node in names}
        return found

    @cached_property
    def imported(self) -> dict[str, tuple[str, ast.alias]]:
        """Name -> (module it is from, or "" for a module itself, and how it is imported)."""
        found = {}
        for statement in self.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                source = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
                for alias in statement.names:
                    name = alias.asname or alias.name.split(".")[0]
                    found[name] = (source, alias)
        return found

    def source(self, statement: ast.stmt) -> str:
        """The statement's lines without the methods left out, and a constant's docstring."""
        first = _first_line(statement)
        last = statement.end_lineno or first
        after = self.tree.body[self.tree.body.index(statement) + 1 :][:1]
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and after:
            documented = isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant)
            last = (after[0].end_lineno or last) if documented else last
        dropped: set[int] = set()
        for method in _left_out(statement):
            begin = _first_line(method)
            dropped |= set(range(begin, (method.end_lineno or begin) + 1))
        lines = [self.lines[n - 1] for n in range(first, last + 1) if n not in dropped]
        return "\n".join(_single_blanks(lines)).rstrip()


class _Parts:
    """What was collected so far, each definition behind those it needs."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._imports: set[tuple[str, str]] = set()
        self._where: dict[str, str] = {}
        """Module of each name that was taken in."""

    def import_lines(self) -> str:
        """What the parts import of others, a line for each module; optional packages last."""
        whole = [name for source, name in sorted(self._imports) if not source]
        optional = [name for name in whole if name.split(".")[0] in OPTIONAL]
        lines = [f"import {name}" for name in whole if name not in optional]
        for source in sorted({source for source, _ in self._imports if source}):
            names = sorted(name for origin, name in self._imports if origin == source)
            lines.append(f"from {source} import {', '.join(names)}")
        if optional:
            lines += ["", "try:", *(f"    import {name}" for name in optional)]
            lines += ["except ImportError:"]
            lines += [f"    {name} = None" for name in optional if name in OPTIONAL]
        return "\n".join(lines)

    def add_all(self, module: _Module) -> None:
        """All definitions of a module."""
        for name in module.definitions:
            self.add(name, module)

    def add(self, name: str, module: _Module, under: str | None = None) -> None:
        """One definition (or import) and all that it needs; a function, `under` another name."""
        if name in STAND_INS:
            self._imports.add(("typing", "Any"))
        elif name in module.definitions:
            self._define(name, module, under or name)
        elif name in module.imported:
            source, imported = module.imported[name]
            if source.split(".")[0] == "newllm":
                of_source = _Module.find(REFERENCE.get(source, source))
                self.add(imported.name, of_source, under or imported.asname)
            else:
                self._imports.add((source, ast.unparse(imported)))
        else:
            raise ValueError(f"{module.name} does not define {name}")

    def _define(self, name: str, module: _Module, under: str) -> None:
        known = self._where.get(under)
        if known == module.name:
            return
        if known is not None:
            raise ValueError(f"{under} is defined in {known} and in {module.name}")
        statement = module.definitions[name]
        together = [other for other, at in module.definitions.items() if at is statement]
        self._where |= dict.fromkeys([under] if under != name else together, module.name)
        for needed in _needs(statement, {*module.definitions, *module.imported}):
            self.add(needed, module)
        source = module.source(statement)
        if under != name:
            source = source.replace(f"def {name}(", f"def {under}(", 1)
        compound = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        self.sources.append(("\n" if compound else "") + source)


def _needs(statement: ast.stmt, known: set[str]) -> Iterator[str]:
    """Names of the file that a definition uses, annotations included."""
    left_out = {id(method) for method in _left_out(statement)}
    to_visit: list[ast.AST] = [statement]
    while to_visit:
        node = to_visit.pop()
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Name) and node.id in known:
            yield node.id
        to_visit += reversed(list(ast.iter_child_nodes(node)))


def _left_out(statement: ast.stmt) -> list[ast.FunctionDef]:
    body = statement.body if isinstance(statement, ast.ClassDef) else []
    return [s for s in body if isinstance(s, ast.FunctionDef) and s.name in TRAINING_ALONE]


def _first_line(statement: ast.stmt) -> int:
    """Where a definition begins, with its decorators."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


def _single_blanks(lines: list[str]) -> list[str]:
    """No two empty lines in a row."""
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
