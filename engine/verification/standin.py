"""Stand-ins: machines that do what another one shows to its parent, and nothing in between.

A parent sees of its child the states marked `milestone=True` and its end.  `stand_in(Spend)` is a
machine of the same name that starts from the same context and moves, by choice, from milestone to
milestone and to an end wherever the real one has a way there.  What its `output()` gives comes with
the choice.  So a parent is explored against everything its child could ever tell it; that the child
itself is sound is shown by exploring the child.

Where the real machine can be stopped in some of the states behind one milestone and not in others,
the stand-in has a second state, `<milestone>_held`, that is the other way round.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, get_type_hints

import msgspec

from engine.definition import Machine, State
from engine.events import Context, Event
from engine.table import Table, compile_table

OUTPUT = "stand_in_output"


@cache
def stand_in(machine: type[Machine[Any]]) -> type[Machine[Any]]:
    """The stand-in of a machine; the same one each time."""
    return _StandIn(compile_table(machine)).build()


def is_stand_in(table: Table) -> bool:
    """Whether this is one."""
    return OUTPUT in table.context.__struct_fields__


def target_of(event: str) -> str:
    """The state to which an event of a stand-in leads."""
    return event.removeprefix("to_")


class _StandIn:
    def __init__(self, table: Table) -> None:
        self.table = table
        self.output = get_type_hints(table.machine.output).get("return", None) or type(None)
        self.finals = [name for name, place in table.places.items() if place.final]
        self.stages = [
            name
            for name, place in table.places.items()
            if not place.final and (place.milestone or name == table.initial)
        ]

    def build(self) -> type[Machine[Any]]:
        optional: Any = self.output | None
        context: Any = msgspec.defstruct(
            self.table.context.__name__,
            [(OUTPUT, optional, None)],
            bases=(self.table.context,),
            frozen=True,
            forbid_unknown_fields=True,
            module=__name__,
        )
        base: Any = Machine
        return types.new_class(
            self.table.name,
            (base[context],),
            {},
            lambda body: body.update(self._body(context, optional)),
        )

    def _body(self, context: type[Context], output: Any) -> dict[str, Any]:
        states = {name: self._stage(name) for name in self.stages}
        body: dict[str, Any] = {
            "__module__": __name__,
            "__doc__": f"Stands in for {self.table.name}.",
        }
        ends = {name: State(final=True, failure=self.table.places[name].failure)
                for name in self.finals}  # fmt: skip
        reached: dict[str, list[Any]] = {}
        for name, state in list(states.items()):
            sources, targets = [state], self._reachable(name)
            if self._is_mixed(name):
                held = State(waits=True, cancellable=not self.table.places[name].cancellable)
                states[f"{name}_held"] = held
                reached.setdefault(f"{name}_held", []).append(state.to(held))
                sources.append(held)
            for target in targets:
                for source in sources:
                    into = states.get(target) or ends[target]
                    keep = {"on": "keep_output"} if target in ends else {}
                    reached.setdefault(target, []).append(source.to(into, **keep))
        used = {name: state for name, state in ends.items() if name in reached}
        payloads = tuple(
            msgspec.defstruct(f"To_{name}", [("output", output, None)], bases=(Event,),
                              tag=f"to_{name}", frozen=True, forbid_unknown_fields=True)
            for name in used
        )  # fmt: skip
        body |= states | used
        for target, transitions in reached.items():
            joined = transitions[0]
            for one in transitions[1:]:
                joined = joined | one
            body[f"to_{target}"] = joined
        body |= {"payloads": payloads, "keep_output": _keep_output, "output": _output}
        return body

    def _stage(self, name: str) -> State:
        place = self.table.places[name]
        return State(
            initial=name == self.table.initial,
            waits=True,
            milestone=place.milestone,
            cancellable=place.cancellable,
        )

    def _behind(self, stage: str) -> set[str]:
        """The states of the real machine between a stage and the next ones."""
        found, todo = {stage}, [stage]
        while todo:
            state = todo.pop()
            for target in self._targets(state):
                if target not in self.stages and target not in self.finals and target not in found:
                    found.add(target)
                    todo.append(target)
        return found

    def _targets(self, state: str) -> list[str]:
        edges = self.table.all_edges()
        return [edge.target for edge in edges if edge.source == state and not edge.stays]

    def _reachable(self, stage: str) -> list[str]:
        """The stages and ends that may come next."""
        found = {target for state in self._behind(stage) for target in self._targets(state)}
        return [name for name in (*self.stages, *self.finals) if name in found and name != stage]

    def _is_mixed(self, stage: str) -> bool:
        return len({self.table.places[one].cancellable for one in self._behind(stage)}) > 1


def _keep_output(self: Any, context: Context, event: Event) -> Any:
    return self.but(context, **{OUTPUT: getattr(event, "output", None)})


def _output(self: Any, context: Context) -> Any:
    return getattr(context, OUTPUT)
