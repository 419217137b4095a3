"""The command line of a program built on turtles: `build_cli(app_factory)`."""

from __future__ import annotations

from engine.cli.build import build_cli
from engine.cli.place import Place

__all__ = ["Place", "build_cli"]
