"""The examples in the library's docstrings run, and every public class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import influence

MODULES = sorted(module.name for module in pkgutil.walk_packages(influence.__path__, "influence."))
CLASSES = sorted(name for name in influence.__all__ if inspect.isclass(getattr(influence, name)))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    found = doctest.testmod(module)
    assert found.failed == 0


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(influence, name).__doc__ or ""), f"{name}: show how it is used, in its docstring"
