"""What effects and the engine send, and whether a state takes it: V004, V010, V011."""

from __future__ import annotations

from collections.abc import Iterator

from engine.control import CANCEL_EVENT
from engine.effects import Effect
from engine.table import Edge, Place
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject, outcomes_of, own_outcomes, sent_by_engine


def check_effects(subject: Subject) -> Iterator[Finding]:
    """V010: an effect that may happen twice, and nobody could tell."""
    for place in subject.table.places.values():
        for option in ("effect", "compensation"):
            effect: Effect | None = getattr(place, option)
            if effect is not None and not effect.idempotent and effect.ask is None:
                undo = " (its compensation cannot tell either)" if place.compensation else ""
                yield subject.at_state("V010", "error", place.name,
                    f"{option} {effect.name} is neither idempotent nor has a reconcile: after a "
                    f"crash it would happen twice{undo}",
                    "Send call.key and say @effect(idempotent=True), or add @name.reconcile"
                )  # fmt: skip


def check_outcomes(subject: Subject) -> Iterator[Finding]:
    """V011: an event of the state's own effect, timer or child that the state does not handle."""
    for place in subject.table.places.values():
        for event, option in sent_by_engine(place).items():
            if (place.name, event) not in subject.table.edges:
                yield subject.at_state("V011", "error", place.name,
                    f"{option}={event!r} is not handled in {place.name}",
                    f"Add {event} = {place.name}.to(...)")  # fmt: skip
        yield from _effect_outcomes(subject, place)
        yield from _inherited_child(subject, place)


def _effect_outcomes(subject: Subject, place: Place) -> Iterator[Finding]:
    if place.effect is None:
        return
    name = place.effect.name
    events, again, known = outcomes_of(place.effect)
    if not known or not (events or again):
        yield subject.at_state("V011", "warning", place.name,
            f"effect {name} does not say which events it may return",
            f"Annotate it: async def {name}(context, call) -> Paid | Declined", method="read"
        )  # fmt: skip
    missing = [event for event in sorted(events) if (place.name, event) not in subject.table.edges]
    if missing:
        kinds = ", ".join(events[event].__name__ for event in missing)
        yield subject.at_state("V011", "error", place.name,
            f"effect {name} may return {kinds}, but {place.name} does not handle "
            f"{', '.join(missing)}: the run would be quarantined",
            f"Add {missing[0]} = {place.name}.to(...), or narrow the effect's return annotation",
            method="read")  # fmt: skip
    for event, kind in sorted(events.items()):
        expected = subject.table.payloads.get(event)
        if event not in missing and expected is not kind:
            yield subject.at_state("V011", "error", place.name,
                f"effect {name} returns {kind.__name__} for {event!r}, the machine expects "
                f"{expected.__name__ if expected else 'no payload'}",
                "Use one payload type for an event", method="read")  # fmt: skip


def _inherited_child(subject: Subject, place: Place) -> Iterator[Finding]:
    """A child tells its end with the event of the state that started it."""
    if not place.follows_child:
        return
    for starter in _starters(subject, place.name):
        event = starter.on_child
        if event is not None and (place.name, event) not in subject.table.edges:
            yield subject.at_state("V011", "error", place.name,
                f"the child started in {starter.name} ends with {event!r}, which {place.name} "
                "does not handle", f"Add {event} = {place.name}.to(...)")  # fmt: skip


def _starters(subject: Subject, state: str) -> list[Place]:
    places = subject.table.places
    seen, todo, found = {state}, [state], []
    while todo:
        here = todo.pop()
        for edge in subject.table.all_edges():
            if edge.target == here and edge.source not in seen:
                seen.add(edge.source)
                if places[edge.source].child is not None:
                    found.append(places[edge.source])
                elif places[edge.source].follows_child:
                    todo.append(edge.source)
    return found


def check_external(subject: Subject) -> Iterator[Finding]:
    """V004: an event from outside that a run may have outrun, or that may come too early.

    From outside is what neither the engine nor the state's own effect sends.  Only neighbours of
    a state that handles it are looked at, and only along edges that the run takes by itself: there
    the sender cannot know better.
    """
    handlers: dict[str, list[Edge]] = {}
    for edge in subject.table.all_edges():
        if is_external(subject, edge) and edge.event != CANCEL_EVENT:
            handlers.setdefault(edge.event, []).append(edge)
    for event, edges in handlers.items():
        homes = {edge.source for edge in edges}
        late = {e.target for e in subject.table.all_edges()
                if e.source in homes and not is_external(subject, e)}  # fmt: skip
        early = {e.source for e in subject.table.all_edges()
                 if e.target in homes and not is_external(subject, e)}  # fmt: skip
        deaf = [s for s in subject.table.places if s in (late | early) - homes
                and not subject.table.places[s].final
                and (s, event) not in subject.table.edges]  # fmt: skip
        if deaf:
            yield subject.at_edge("V004", "warning", edges[0],
                f"{event!r} comes from outside and may meet the run in {', '.join(deaf)}, "
                "where it is refused",
                "Handle it there (state.to.itself() drops it), or say why the sender copes"
            )  # fmt: skip


def is_external(subject: Subject, edge: Edge) -> bool:
    """Whether somebody outside sends the event that takes this edge."""
    place = subject.table.places[edge.source]
    if edge.event in sent_by_engine(place) or edge.event in own_outcomes(place):
        return False
    if place.follows_child and any(s.on_child_moved == edge.event or s.on_child == edge.event
                                   for s in _starters(subject, place.name)):  # fmt: skip
        return False
    return place.effect is None or outcomes_of(place.effect)[2]
