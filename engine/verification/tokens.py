"""A failure as something to keep: a replay token, a test without Hypothesis, a sequence diagram.

A replay token is `tv1:` and the base64 of the compressed JSON of machine, fingerprint and steps
(or, for an interleaving, the picks of its scheduler).  It holds values, not numbers of choices, so
it means the same in later versions; another fingerprint of the machine is worth a warning, and a
step that is not possible any more an error.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine.definition import Machine
from engine.errors import UsageError
from engine.table import Table, compile_table
from engine.verification.environment import Environment
from engine.verification.result import Failure, Step
from engine.verification.schedules import Schedule, ScheduleFailure
from engine.verification.static.children import machines_started
from engine.verification.static.subject import Subject

PREFIX = "tv1:"
OPENED_MAX = 10_000_000
"""More bytes than this are in no token of ours."""
BY_FILE = "turtles_lint_"
WAY = "way"
"""The kind of a token that leads somewhere and accuses nobody."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A way through a machine, to be gone again.

    Args:
        kind: `safety`, `liveness`, `schedule`, or `way` for one that was only asked for.
        environment: `module:class` of the environment in which it was found.
        schedule: the interleaving, for a token of kind `schedule`.
    """

    machine: str
    fingerprint: str
    kind: str = "safety"
    rule: str = ""
    steps: tuple[tuple[Any, ...], ...] = ()
    environment: str = ""
    schedule: Schedule | None = None


def token_of(
    table: Table, failure: Failure | ScheduleFailure, environment: Environment | None = None
) -> str:
    """The token of a failure."""
    if isinstance(failure, ScheduleFailure):
        token = Token(machine=table.name, fingerprint=table.fingerprint, kind="schedule",
                      rule=failure.rule, schedule=failure.schedule,
                      environment=named_environment(environment))  # fmt: skip
    else:
        token = Token(machine=table.name, fingerprint=table.fingerprint, kind=failure.kind,
                      rule=failure.rule, steps=failure.steps,
                      environment=named_environment(environment))  # fmt: skip
    return _packed(token)


def token_of_way(
    table: Table, steps: Sequence[Step], goal: str, environment: Environment | None = None
) -> str:
    """The token of a way that leads to `goal`."""
    return _packed(Token(machine=table.name, fingerprint=table.fingerprint, kind=WAY, rule=goal,
                         steps=tuple(steps),
                         environment=named_environment(environment)))  # fmt: skip


def named_environment(environment: Environment | None) -> str:
    """`module:class`, or nothing."""
    if environment is None:
        return ""
    kind = type(environment)
    return f"{kind.__module__.removeprefix(BY_FILE)}:{kind.__qualname__}"


def _packed(token: Token) -> str:
    packed = zlib.compress(msgspec.json.encode(token), 9)
    return PREFIX + base64.urlsafe_b64encode(packed).decode()


def read_token(text: str) -> Token:
    """The way that a token names.

    Raises:
        UsageError: it is not a token, of another version, or was cut.
    """
    problem = "token: expected tv1: and what `turtles verify` printed after it"
    text = text.strip()
    if not text.startswith(PREFIX):
        kind, colon, _ = text.partition(":")
        if colon and kind[:2] in ("tv", "pv") and kind[2:].isdigit():
            raise UsageError(
                f"{problem}; this one has the form {kind}, which this version of turtles cannot "
                "read. Make a new one with `turtles verify`."
            )
        raise UsageError(f"{problem}, got {text[:20]!r}.")
    try:
        packed = base64.b64decode(text.removeprefix(PREFIX), altchars=b"-_", validate=True)
        opened = zlib.decompressobj()
        body = opened.decompress(packed, OPENED_MAX)
        if not opened.eof:
            raise UsageError(f"{problem}; it is cut, or longer than any of ours.")
        return msgspec.json.decode(body, type=Token)
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise UsageError(f"{problem}; it is damaged ({type(error).__name__}: {error}).") from error


def warning_of(token: Token, table: Table, environment: Environment | None) -> str:
    """What is not as it was when the token was made; nothing if all is."""
    if token.machine != table.name:
        return (f"warning: the token is of {token.machine} {token.fingerprint}, "
                f"this is {table.name} {table.fingerprint}")  # fmt: skip
    if token.fingerprint != table.fingerprint:
        return (f"warning: the shape of {table.name} has changed since: the token is of "
                f"{token.fingerprint}, this is {table.fingerprint}")  # fmt: skip
    here = named_environment(environment)
    if token.environment != here:
        return (f"warning: the token was made in environment {token.environment or 'none'}, "
                f"this is {here or 'none'}")  # fmt: skip
    return ""


# -- words ----------------------------------------------------------------------------------------


def said(step: Step) -> str:
    """A step in words."""
    match step:
        case ("start", machine, context):
            return f"a run of {machine} is accepted with {context}"
        case ("clock", moment):
            return f"time goes on to due moment {moment + 1}"
        case ("send", event, text, number):
            return f"{event} arrives at run {number} {text}".rstrip()
        case ("again", event, text, number):
            return f"{event} arrives at run {number} again, under the same key {text}".rstrip()
        case ("child", event, text, number):
            return f"run {number}, a child, does {event} {text}".rstrip()
        case ("cancel",):
            return "somebody asks the run to stop"
        case ("pause",):
            return "somebody pauses the run"
        case ("resume",):
            return "somebody resumes the run"
        case ("probe", event, text):
            return f"{event} arrives, which this state does not handle {text}".rstrip()
        case ("move", number):
            return f"a worker takes run {number}"
        case ("crash", number):
            return f"CRASH after commit {number} of this move"
        case ("call", "arrives", event, text, number):
            return f"meanwhile {event} arrives at run {number} {text}".rstrip()
        case ("call", kind, *rest):
            return f"{_ANSWERS.get(kind, kind)} {' '.join(one for one in rest[1:] if one)}".rstrip()
    return " ".join(str(one) for one in step)


_ANSWERS = {
    "ok": "the call answers",
    "again": "the call has nothing to report yet",
    "transient": "the call fails, to be tried again",
    "permanent": "the call is refused for good",
    "unsent": "the call is NOT done, and nobody knows",
    "lost": "the call is DONE, the answer is lost:",
    "died": "the call is DONE, and the worker dies:",
    "zombie": "the call is DONE, but the worker has lost the run meanwhile:",
    "told": "reconcile tells the truth",
    "unknown": "reconcile cannot say",
}


def said_with_states(steps: Sequence[Step], states: Sequence[str]) -> list[tuple[str, str]]:
    """Each step in words, and where the runs are after it if that has changed.

    `states` has one for each action; the calls and the crash of a move belong to it.
    """
    found: list[tuple[str, str]] = []
    before, left = "", list(states)
    for number, step in enumerate(steps):
        following = steps[number + 1][0] if number + 1 < len(steps) else ""
        now = ""
        if following not in ("call", "crash") and left:
            now = left.pop(0)
        found.append((said(step), now if now != before else ""))
        before = now or before
    return found


def diagram(failure: Failure | ScheduleFailure) -> str:
    """The way to a failure as a Mermaid sequence diagram."""
    if isinstance(failure, ScheduleFailure):
        return _diagram_of_schedule(failure)
    found = [
        "sequenceDiagram",
        "  participant World",
        "  participant Worker",
        "  participant Outside",
    ]
    for step in failure.steps:
        text = _quiet(said(step))
        if step[0] == "call":
            arrow = "--x" if step[1] in ("lost", "died", "unsent", "zombie", "unknown") else "-->>"
            found += ["  Worker->>Outside: call", f"  Outside{arrow}Worker: {text}"]
        elif step[0] in ("send", "again", "cancel", "pause", "resume", "child", "start", "probe"):
            found.append(f"  World->>Worker: {text}")
        else:
            found.append(f"  Note over Worker: {text}")
    told = f"{failure.rule}: {_quiet(failure.problem)}"
    return "\n".join([*found, f"  Note over World,Outside: {told}", ""])


def _diagram_of_schedule(failure: ScheduleFailure) -> str:
    actors = list(dict.fromkeys(actor for actor, _ in failure.trace)) or ["nobody"]
    names = {actor: f"A{number}" for number, actor in enumerate(actors)}
    found = ["sequenceDiagram"]
    found += [f"  participant {name} as {_quiet(actor)}" for actor, name in names.items()]
    found += [f"  Note over {names[actor]}: {_quiet(done)}" for actor, done in failure.trace]
    over = ",".join(dict.fromkeys((names[actors[0]], names[actors[-1]])))
    told = f"{failure.rule}: {_quiet(failure.problem)}"
    return "\n".join([*found, f"  Note over {over}: {told}", ""])


def _quiet(text: str) -> str:
    """Without what Mermaid reads as its own."""
    return text.replace(";", ",").replace("#", "no ").replace("\n", " ")


# -- tests ----------------------------------------------------------------------------------------


def children_of(table: Table, known: Iterable[type[Machine[Any]]]) -> list[type[Machine[Any]]]:
    """The machines among `known` that this one may start, and those that they may start."""
    machines = {one.__name__: one for one in known}
    tables = {name: compile_table(one) for name, one in machines.items()}
    tables[table.name] = table
    found: dict[str, None] = {}
    todo = [table.name]
    while todo:
        subject = Subject(tables[todo.pop()], tables)
        for place in subject.table.places.values():
            for name in sorted(machines_started(subject, place)):
                if name in machines and name != table.name and name not in found:
                    found[name] = None
                    todo.append(name)
    return [machines[name] for name in found]


def pytest_file(
    table: Table,
    failure: Failure | ScheduleFailure,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
) -> str:
    """A pytest file that goes the way again; it fails on the defect and passes on the fix.

    Args:
        known: as for `explore`; those that the machine may start are imported.
        environment: the one in which it was found; its module is imported, so that it registers.
    """
    stand_ins = {one.__name__ for one in environment.stand_ins} if environment else set()
    children = [one for one in children_of(table, known) if one.__name__ not in stand_ins]
    imports = _imports([table.machine, *children], environment)
    token = token_of(table, failure, environment)
    pasted = "\n".join(f'    "{token[i : i + 80]}"' for i in range(0, len(token), 80))
    rule = "".join(c if c.isalnum() else "_" for c in failure.rule.lower())
    body = {
        "machine": table.machine.__qualname__,
        "known": f", known=[{', '.join(one.__name__ for one in children)}]" if children else "",
    }
    scheduled = isinstance(failure, ScheduleFailure)
    return f"""{_comment(failure)}

{imports}

{_SCHEDULE_IMPORTS if scheduled else _WAY_IMPORTS}

TOKEN = (
{pasted}
)


def test_{table.name.lower()}_{rule}() -> None:
{(_SCHEDULE_BODY if scheduled else _WAY_BODY).format_map(body)}"""


_WAY_IMPORTS = """from engine.verification.explore import repeat
from engine.verification.report import read_token
from persistence.store import open_store"""
_WAY_BODY = """\
    token = read_token(TOKEN)
    liveness = token.kind == "liveness"
    found = repeat(
        {machine}, open_store("sqlite://"), token.steps, liveness=liveness, as_far=True{known}
    )
    assert found.breaches == (), found
"""
_SCHEDULE_IMPORTS = """from engine.verification.report import read_token
from engine.verification.schedules import replay_schedule
from persistence.store import open_store"""
_SCHEDULE_BODY = """\
    schedule = read_token(TOKEN).schedule
    assert schedule is not None
    found = replay_schedule({machine}, lambda: open_store("sqlite://"), schedule{known})
    assert found.breaches == (), found
"""


def _comment(failure: Failure | ScheduleFailure) -> str:
    if isinstance(failure, ScheduleFailure):
        steps = [f"{actor}: {done}" for actor, done in failure.trace]
    else:
        steps = [said(step) for step in failure.steps]
    told = [f"{failure.rule}: {failure.problem}", "", *steps]
    return "\n".join(f"# {line}".rstrip() for one in told for line in one.splitlines() or [""])


def _imports(machines: Sequence[type[Machine[Any]]], environment: Environment | None) -> str:
    """Import lines; a machine that was found by its file is imported by the file's name."""
    names: dict[str, list[str]] = {}
    for one in machines:
        names.setdefault(_module_of(one), []).append(one.__qualname__)
    lines = [f"from {module} import {', '.join(sorted(some))}" for module, some in names.items()]
    if environment is not None and _module_of(type(environment)) not in names:
        module = _module_of(type(environment))
        lines.insert(0, f"import {module}  # noqa: F401 - it says what the outside may do")
    return "\n".join(lines)


def _module_of(kind: type) -> str:
    return kind.__module__.removeprefix(BY_FILE)
