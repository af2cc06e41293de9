"""Builds the API reference from the docstrings with pdoc (``make docs``) in outputs/reference/index.html.

Every reference in a docstring must lead to something that can be imported, or nothing is written.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?\.?([\w.]+)(?:\(\))?`")


def modules() -> list[str]:
    """Every public module of the library, the package first."""
    import influence

    found = ["influence"]
    for module in pkgutil.walk_packages(influence.__path__, "influence."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            found.append(module.name)
    return found


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public classes and functions that ``module`` defines, and their public methods, by full name."""
    for name, thing in vars(module).items():
        mine = getattr(thing, "__module__", None) == module.__name__
        if name.startswith("_") or not mine or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for inner, method in vars(thing).items():
                if not inner.startswith("_") and (inspect.isfunction(method) or isinstance(method, property)):
                    yield f"{module.__name__}.{name}.{inner}", getattr(thing, inner)


def absolute(target: str) -> str | None:
    """The name under which pdoc knows what a dotted name imports; None if it can't be imported."""
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for number, part in enumerate(parts[count:], count):
            annotated = part in getattr(found, "__annotations__", {}) and number == len(parts) - 1
            if not hasattr(found, part) and not annotated:
                return None
            found = getattr(found, part, None)
        home = getattr(found, "__module__", "")
        if home.startswith("influence.") and hasattr(found, "__qualname__"):
            return f"{home}.{found.__qualname__}"
        return target
    return None


def resolved(target: str, module: ModuleType, owner: str = "") -> str | None:
    """The full name of what a docstring of ``module`` refers to; None if it leads nowhere.

    It may be named from the class ``owner`` (by default from any class of the module), from the module, from
    a package around it, or in full.
    """
    name = module.__name__
    classes = [n for n, thing in vars(module).items() if inspect.isclass(thing) and thing.__module__ == name]
    scopes = [f"{name}.{one}" for one in ([owner] if owner else classes)] + [name]
    while "." in name:
        name = name.rpartition(".")[0]
        scopes.append(name)
    for scope in scopes:
        found = absolute(f"{scope}.{target}")
        if found is not None:
            return found
    return absolute(target)


def broken(names: list[str]) -> list[str]:
    """References in docstrings that lead nowhere, each as ``where: target``."""
    found = []
    for name in names:
        module = importlib.import_module(name)
        for where, thing in [(name, module), *members(module)]:
            owner = where.removeprefix(f"{name}.").split(".")[0] if where != name else ""
            owner = owner if inspect.isclass(getattr(module, owner, None)) else ""
            if inspect.getdoc(thing) is not None and thing is not module and not thing.__doc__:
                continue  # the docstring of what it overrides, read there
            for target in ROLE.findall(inspect.getdoc(thing) or ""):
                if resolved(target, module, owner) is None:
                    found.append(f"{where}: {target}")
    return found


def build(folder: Path) -> None:
    """Writes the pages.

    Raises:
        SystemExit: a docstring refers to something that does not exist.
    """
    import pdoc
    import pdoc.docstrings
    import pdoc.render

    names = modules()
    lost = broken(names)
    if lost:
        raise SystemExit("references that lead nowhere:\n" + "\n".join(lost))
    files = {importlib.import_module(name).__file__: importlib.import_module(name) for name in names}
    convert = pdoc.docstrings.convert

    def with_links(docstring: str, docformat: str, source_file: Path | None) -> str:
        """Sphinx's roles as names in code style, which pdoc makes links of."""
        module = files.get(str(source_file))

        def code(match: re.Match[str]) -> str:
            target = match.group(1)
            return f"`{(module and resolved(target, module)) or target}`"

        return convert(ROLE.sub(code, docstring), docformat, source_file)

    pdoc.docstrings.convert = with_links  # type: ignore[assignment]  # pdoc has no setting for it
    try:
        pdoc.render.configure(docformat="google", math=False, show_source=False)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a package names its modules too, and each is named here
            pdoc.pdoc(*names, output_directory=folder)
    finally:
        pdoc.docstrings.convert = convert  # type: ignore[assignment]  # as it was


if __name__ == "__main__":
    to = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/reference")
    build(to)
    print(to / "index.html")
