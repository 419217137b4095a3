"""The sandboxes of the endpoints' tests.

A test that wants real walls as well is parametrized with `backend`, indirectly.
"""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nothing is run, unless a test asks for real walls."""
    if getattr(request, "param", "fake") == "fake":
        return FakeBackend()
    return BubblewrapBackend(tmp_path_factory.mktemp("sandboxes"))
