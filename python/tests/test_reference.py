"""docs/python-reference.md is made of the sources: signatures and docstrings. `BOOK=write` writes it."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/dpar_export"
PAGE = ROOT / "docs/python-reference.md"

HEAD = """# Python, by name

<!-- Made by python/tests/test_reference.py: BOOK=write writes it. -->

Every public name of `dpar_export`, with its signature and what its docstring says. How they go together: [python.md](python.md).
"""
#: The longest signature on one line.
WIDTH = 100
#: Docstring sections whose lines are entries.
SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def exported(module: Path) -> tuple[list[str], ast.Module]:
    """What a module says is public, and its source."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value)), tree
    raise AssertionError(f"{module} has no __all__")


def definitions(name: str) -> Iterator[ast.stmt]:
    """The definitions of a module of the package."""
    for file in (PACKAGE / f"{name}.pyi", PACKAGE / f"{name}.py"):
        if file.is_file():
            yield from ast.parse(file.read_text(encoding="utf-8")).body
            return


def find(name: str, tree: ast.Module) -> Function | ast.ClassDef | None:
    """The definition behind a public name, here or where it is imported from."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            module = (node.module or "").removeprefix("dpar_export.")
            for there in definitions(module):
                if isinstance(there, Function | ast.ClassDef) and there.name == name:
                    return there
    return None


def parameters(arguments: ast.arguments) -> Iterator[str]:
    """Each as it stands in the source, without `self`."""

    def one(argument: ast.arg, default: ast.expr | None = None) -> str:
        said = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else argument.arg
        return said if default is None else f"{said} = {ast.unparse(default)}"

    assert not arguments.posonlyargs
    without = [None] * (len(arguments.args) - len(arguments.defaults))
    for argument, default in zip(arguments.args, [*without, *arguments.defaults], strict=True):
        if argument.arg != "self":
            yield one(argument, default)
    if arguments.vararg:
        yield f"*{one(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, named in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield one(argument, named)
    if arguments.kwarg:
        yield f"**{one(arguments.kwarg)}"


def signature(function: Function, prefix: str = "") -> str:
    """As it is called."""
    said = list(parameters(function.args))
    back = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    line = f"{prefix}{function.name}({', '.join(said)}){back}"
    if len(line) <= WIDTH:
        return line
    return f"{prefix}{function.name}(\n{''.join(f'    {one},{chr(10)}' for one in said)}){back}"


def text(node: Function | ast.ClassDef) -> str:
    """A docstring in Markdown: sections become lists."""
    found, entries = [], False
    for line in inspect.cleandoc(ast.get_docstring(node) or "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            found += [f"*{line}*", ""]
            entries = True
        elif not line.startswith("    ") or not entries:
            entries = entries and not line
            found.append(line)
        elif line.startswith("     "):
            found[-1] += " " + line.strip()
        else:
            name, colon, rest = line.strip().partition(": ")
            entry = f"`{name}`: {rest}" if colon and name.isidentifier() else line.strip()
            found.append(f"- {entry}")
    return "\n".join(found)


def members(node: ast.ClassDef) -> list[Function]:
    """Public methods and properties that say what they do."""
    own = [m for m in node.body if isinstance(m, Function) and not m.name.startswith("_")]
    return [m for m in own if ast.get_docstring(m)]


def section(name: str, node: Function | ast.ClassDef) -> str:
    if isinstance(node, Function):
        return f"\n### {name}\n\n```py\n{signature(node)}\n```\n\n{text(node)}\n"
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    out = f"\n### {name}\n\n```py\nclass {name}{f'({bases})' if bases else ''}\n```\n\n{text(node)}\n"
    for member in members(node):
        if any(ast.unparse(d) == "property" for d in member.decorator_list):
            kind = ast.unparse(member.returns) if member.returns else "Any"
            out += f"\n```py\n.{member.name}: {kind}\n```\n\n{text(member)}\n"
        else:
            out += f"\n```py\n{signature(member, '.')}\n```\n\n{text(member)}\n"
    return out


def page() -> str:
    names, tree = exported(PACKAGE / "__init__.py")
    found = {name: find(name, tree) for name in names}
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Exceptions": []}
    for name, node in found.items():
        assert node is not None, f"{name} is defined nowhere"
        assert ast.get_docstring(node), f"{name} has no docstring"
        kind = "Functions" if isinstance(node, Function) else "Exceptions" if name.endswith("Error") else "Classes"
        groups[kind].append(section(name, node))
    out = HEAD + "".join(f"\n## {title}\n{''.join(parts)}" for title, parts in groups.items())
    out += "\n## dpar_export.cluster\n"
    names, tree = exported(PACKAGE / "cluster.py")
    for name in names:
        node = find(name, tree)
        # What is no definition is the name of a type.
        out += section(name, node) if node else ""
    return out


def test_the_page_is_what_the_sources_say() -> None:
    wanted = page()
    if os.environ.get("BOOK") == "write":
        PAGE.write_text(wanted, encoding="utf-8")
    said = PAGE.read_text(encoding="utf-8")
    assert said == wanted, "docs/python-reference.md is not what the sources say (BOOK=write writes it)"
