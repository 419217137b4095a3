"""The top-level names are generic; another package of the same name must fail loudly and first."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["engine", "machines", "persistence", "migrations"])
def test_package_resolves_inside_this_checkout(name):
    module = import_module(name)
    assert Path(str(module.__file__)).resolve() == CHECKOUT / name / "__init__.py"


def test_every_public_name_of_the_engine_exists():
    engine = import_module("engine")
    assert all(getattr(engine, name) is not None for name in engine.__all__)
    assert len(set(engine.__all__)) == len(engine.__all__) == len(engine._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        engine.nothing  # noqa: B018 - the access is the test


def test_tests_are_no_package():
    assert not list((CHECKOUT / "tests").rglob("__init__.py"))
