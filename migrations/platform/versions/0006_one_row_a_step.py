"""The engine's tables beside the platform's follow the engine's own migration 0002."""

import importlib.util
from pathlib import Path
from types import ModuleType

revision = "0006"
down_revision = "0005"

_ENGINE = Path(__file__).resolve().parents[2] / "engine" / "versions" / "0002_one_row_a_step.py"


def upgrade() -> None:
    """What the engine does to its tables."""
    _module().upgrade()


def downgrade() -> None:
    """Refused, as the engine refuses it."""
    _module().downgrade()


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_step", _ENGINE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
