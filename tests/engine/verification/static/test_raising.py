"""An invariant that raises is named, with the context for which it does."""

from __future__ import annotations

from engine import Context, Machine, State, invariant
from engine.verification.lint import lint


class Share(Context):
    parts: int = 0


class Divided(Machine[Share]):
    open_ = State(initial=True, timeout=1, on_timeout="close")
    shut = State(final=True)
    close = open_.to(shut)

    @invariant
    def is_fair(self, context: Share) -> bool:
        return 100 // context.parts > 0


class Sound(Divided):
    @invariant
    def is_fair(self, context: Share) -> bool:
        return context.parts == 0 or 100 // context.parts > 0


def found(machine: type[Machine[Share]]) -> list[str]:
    return [one.problem for one in lint([machine], prove=False).findings if one.code == "V000"]


def test_an_invariant_that_raises_is_named_with_its_context() -> None:
    (problem,) = found(Divided)
    assert problem.startswith("invariant is_fair raises ZeroDivisionError instead of saying no")
    assert problem.endswith("for instance for {'parts': 0}")


def test_one_that_has_an_answer_for_everything_is_not() -> None:
    assert found(Sound) == []
