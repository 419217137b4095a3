"""Every endpoint, walked: success, bad field, wrong tenant, unknown id, wrong state, over limit.

`CASES` says how each signed endpoint is called so that it works.  What follows from descriptions
is not said again: wrong values come from the body's schema, routes and their aliases from the
endpoint, foreign ids from the path's parameters.  An endpoint without a case fails the first test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema_rs
import pytest

from machines.platform.unsigned import Unsigned, UnsignedRoute
from machines.platform.wire import Endpoint

Ids = dict[str, str]
Call = tuple[str, str, Any]
Pair = tuple[str, str]
HUSH = "hush-hush"
"""In everything that a tenant can name."""
UNKNOWN = {
    "session_id": "unsb-session-0123456789abcdef",
    "service_id": "unsb-service-0123456789abcdef",
    "snapshot_id": "unsb-snapshot-0123456789abcdef",
    "image_id": "unsb-image-0123-4567-89ab-cdef",
    "job_id": "01234567-89ab-4def-8123-456789abcdef",
    "service_snapshot_id": "unsb-snapshot-fedcba9876543210",
}
_S, _V, _P, _I = (
    "/sessions/{session_id}",
    "/services/{service_id}",
    "/snapshots/{snapshot_id}",
    "/images/{image_id}",
)
LOOKED_AT_WITH: dict[str, dict[str, Any]] = {
    f"POST {_S}/execute code": {"command": None},
    "POST /snapshots source_id": {"session_id": None, "source_type": "session"},
    **{
        f"POST {_P}/clone {field}": {"type": "service", "name": "cloned"}
        for field in ("name", "ports", "bootstrap", "bootstrap_content")
    },
    **{f"POST {_I}/spawn {field}": {"type": "session"} for field in ("shell", "ttl", "toolbox")},
}
"""Fields that are looked at only beside others, by endpoint."""
TAKEN = (("ports", ""),)
"""Values beyond their schema that some client sends: C writes ports as a text."""
CODE = {"language": "python", "code": "print(1)"}


@dataclass(frozen=True)
class Case:
    """How an endpoint works.

    Args:
        body: what it takes; `{name}` in its strings stands for an id of the world; bytes are text.
        query: what follows the path.
        status: of success.
        before: calls that bring the world into the state that is wanted, (method, path, body).
        wrong_states: calls that bring it into one that is not, and the status that answers then.
        slots: takes slots of its key.
        operator: for operators only.
        streams: goes on until the platform stops.
    """

    body: Any = None
    query: str = ""
    status: int = 200
    before: tuple[Call, ...] = ()
    wrong_states: tuple[tuple[tuple[Call, ...], int], ...] = ()
    slots: bool = False
    operator: bool = False
    streams: bool = False


def post(path: str, body: Any = None) -> Call:
    return ("POST", path, {} if body is None else body)


def delete(path: str) -> Call:
    return ("DELETE", path, None)


_ENDED = ((delete(_S),), 410)
_FROZEN = (post(f"{_S}/freeze"),)
_SLEEPS = (post(f"{_V}/freeze"),)
_VAULT = (("PUT", f"{_V}/env", {"env": {"A": HUSH}}),)
_LOCKED = (post(f"{_P}/lock"),)
_GRANTED = (post(f"{_I}/grant", {"trusted_api_key": "{third_key}"}),)
_DELETED_SERVICE = ((delete(_V),), 404)
_DELETED_SNAPSHOT = ((delete(_P),), 404)
_DELETED_IMAGE = ((delete(_I),), 404)

CASES: dict[str, Case] = {
    # keys, cluster, logs
    "POST /keys/validate": Case(),
    "GET /keys/self": Case(),
    "GET /audit": Case(query="?limit=5"),
    "GET /cluster": Case(),
    "GET /stats": Case(),
    "GET /pools": Case(),
    "GET /logs": Case(operator=True, query="?source=api&lines=5&since=5m&level=info"),
    "POST /paas/logs": Case({"source": "all", "lines": 5, "grep": "x"}, operator=True),
    "GET /logs/stream": Case(operator=True, streams=True),
    "GET /logs/{source:path}/stream": Case(operator=True, streams=True),
    "GET /logs/{source:path}": Case(operator=True),
    # executions
    "POST /execute": Case(CODE, slots=True),
    "POST /execute/async": Case(CODE, status=202, slots=True),
    "POST /run": Case(b"#!/bin/bash\necho hi\n", slots=True),
    "POST /run/async": Case(b"#!/bin/bash\necho hi\n", status=202, slots=True),
    "GET /jobs": Case(),
    "GET /jobs/{job_id}": Case(),
    "GET /jobs/{job_id}/wait": Case(),
    "DELETE /jobs/{job_id}": Case(),
    "GET /languages": Case(),
    "GET /shells": Case(),
    # sessions
    "POST /sessions": Case({"ttl": 600}, slots=True),
    "GET /sessions": Case(query="?status=active"),
    f"GET {_S}": Case(),
    f"DELETE {_S}": Case(wrong_states=(((post(f"{_S}/lock"),), 409),)),
    f"POST {_S}/execute": Case({"command": "echo hi"}, wrong_states=(_ENDED, (_FROZEN, 409))),
    # Section 1.6: 400 when a session may not be frozen.
    f"POST {_S}/freeze": Case({}, wrong_states=(((delete(_S),), 400),)),
    f"POST {_S}/unfreeze": Case({}, before=_FROZEN, wrong_states=(_ENDED,), slots=True),
    f"POST {_S}/boost": Case({"vcpu": 2}, wrong_states=(_ENDED, (_FROZEN, 409)), slots=True),
    f"POST {_S}/unboost": Case({}, wrong_states=(_ENDED,)),
    f"POST {_S}/lock": Case({}, wrong_states=(_ENDED,)),
    f"POST {_S}/unlock": Case({}, wrong_states=(_ENDED,)),
    f"POST {_S}/extend": Case({"ttl": 60}, wrong_states=(_ENDED,)),
    f"POST {_S}/snapshot": Case({"name": HUSH}, wrong_states=(_ENDED,)),
    f"POST {_S}/restore": Case({"snapshot_id": "{snapshot_id}"}, wrong_states=(_ENDED,)),
    # services
    "POST /services": Case({"name": "another", "ports": [8080]}, slots=True),
    "GET /services": Case(),
    f"GET {_V}": Case(wrong_states=(_DELETED_SERVICE,)),
    f"PATCH {_V}": Case({"vcpu": 2}, wrong_states=(_DELETED_SERVICE,), slots=True),
    f"POST {_V}/resize": Case({"vcpu": 2}, wrong_states=(_DELETED_SERVICE,), slots=True),
    f"DELETE {_V}": Case(wrong_states=(((post(f"{_V}/lock"),), 409),)),
    f"POST {_V}/freeze": Case({}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/unfreeze": Case({}, before=_SLEEPS, wrong_states=(_DELETED_SERVICE,), slots=True),
    f"POST {_V}/lock": Case({}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/unlock": Case({}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/redeploy": Case({"bootstrap": "echo again"}, wrong_states=(_DELETED_SERVICE,)),
    f"GET {_V}/logs": Case(query="?lines=10", wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/execute": Case(
        {"command": "echo hi"}, status=202, wrong_states=((_SLEEPS, 409), _DELETED_SERVICE)
    ),
    f"PUT {_V}/domains": Case({"add": ["a.example"]}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/snapshot": Case({"name": HUSH}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/restore": Case({"snapshot_id": "{service_snapshot_id}"}),
    f"GET {_V}/env": Case(before=_VAULT, wrong_states=(_DELETED_SERVICE,)),
    f"PUT {_V}/env": Case({"env": {"A": "1"}}, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/env": Case({"env": "A=1"}, wrong_states=(_DELETED_SERVICE,)),
    f"DELETE {_V}/env": Case({"keys": ["A"]}, before=_VAULT, wrong_states=(_DELETED_SERVICE,)),
    f"POST {_V}/env/export": Case({}, before=_VAULT, wrong_states=(_DELETED_SERVICE,)),
    # snapshots
    "POST /snapshots": Case({"session_id": "{session_id}", "name": HUSH}),
    "GET /snapshots": Case(),
    f"GET {_P}": Case(wrong_states=(_DELETED_SNAPSHOT,)),
    f"DELETE {_P}": Case(wrong_states=((_LOCKED, 409),)),
    f"POST {_P}/lock": Case({}, wrong_states=(_DELETED_SNAPSHOT,)),
    f"POST {_P}/unlock": Case({}, wrong_states=(_DELETED_SNAPSHOT,)),
    f"POST {_P}/restore": Case({}, wrong_states=(_DELETED_SNAPSHOT,)),
    f"POST {_P}/clone": Case({"type": "session"}, wrong_states=(_DELETED_SNAPSHOT,), slots=True),
    # images
    "POST /images": Case({"source_type": "snapshot", "source_id": "{snapshot_id}"}),
    "GET /images": Case(query="?filter=owned"),
    "GET /images/owned": Case(),
    "GET /images/shared": Case(),
    "GET /images/public": Case(),
    f"GET {_I}": Case(wrong_states=(_DELETED_IMAGE,)),
    f"DELETE {_I}": Case(wrong_states=(((post(f"{_I}/lock"),), 409),)),
    f"POST {_I}/lock": Case({}, wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/unlock": Case({}, wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/visibility": Case({"visibility": "unlisted"}, wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/grant": Case({"trusted_api_key": "{third_key}"}, wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/revoke": Case({"api_key": "{third_key}"}, before=_GRANTED),
    f"GET {_I}/trusted": Case(wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/transfer": Case({"to_api_key": "{third_key}"}, wrong_states=(_DELETED_IMAGE,)),
    f"POST {_I}/spawn": Case({"name": "spawned"}, wrong_states=(_DELETED_IMAGE,), slots=True),
    f"POST {_I}/clone": Case({"name": HUSH}, wrong_states=(_DELETED_IMAGE,)),
    f"DELETE {_I}/access/{{key}}": Case(before=_GRANTED),
    # Not offered, and said so.
    "POST /image": Case({"prompt": "a turtle"}, status=501),
}


@dataclass
class World:
    """A platform with a tenant who owns one of everything."""

    api: Any
    owner: Pair
    ids: Ids

    async def call(self, pair: Pair, method: str, path: str, body: Any = None) -> httpx.Response:
        """A signed call; `{name}` in path and body stands for an id of this world."""
        content = body if isinstance(body, bytes) else filled(body, self.ids)
        answer: httpx.Response = await self.api.call(pair, method, filled(path, self.ids), content)
        return answer

    async def set_up(self, calls: tuple[Call, ...]) -> None:
        """Bring the owner's things into a state."""
        for method, path, body in calls:
            answer = await self.call(self.owner, method, path, body)
            assert answer.is_success, (method, path, answer.text)


def filled(value: Any, ids: Ids) -> Any:
    """The value with every `{name}` that the world knows replaced."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: ids.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {name: filled(each, ids) for name, each in value.items()}
    return [filled(each, ids) for each in value] if isinstance(value, list) else value


async def furnish(api: Any, owner: Pair) -> World:
    """A tenant with one of everything, under names that nobody else may see."""
    ids = {"source": "api"}
    mark = f"{HUSH}-{owner[0][-4:]}"

    async def make(name: str, path: str, body: Any, as_name: str = "") -> None:
        answer = await api.call(owner, "POST", filled(path, ids), filled(body, ids))
        assert answer.is_success, (path, answer.text)
        document = answer.json()
        ids[as_name or name] = document.get(name) or document["id"]

    await make("session_id", "/sessions", {"tmux": True})
    await make("service_id", "/services", {"name": f"{mark}-service", "ports": [8080]})
    await make("job_id", "/execute", CODE)
    named = {"name": f"{mark}-snapshot"}
    await make("snapshot_id", f"{_S}/snapshot", named)
    await make("snapshot_id", f"{_V}/snapshot", named, "service_snapshot_id")
    image = {"source_type": "snapshot", "source_id": "{service_snapshot_id}"}
    about = {"name": f"{mark}-image", "description": f"{mark}-about"}
    await make("image_id", "/images", image | about)
    third = api.key(tier=32)
    return World(api, owner, ids | {"third_key": third[0], "key": third[0]})


@pytest.fixture
def world(api: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[World]]:
    """Makes worlds on one platform whose rate limit is out of the way."""
    monkeypatch.setattr(api.app.state.api, "requests_per_minute_per_tier", 10_000)

    async def made() -> World:
        owner = api.key(tier=32)
        config = api.context.config
        object.__setattr__(config, "operators", config.operators | {owner[0]})
        return await furnish(api, owner)

    return made


def endpoints(api: Any) -> dict[str, Endpoint]:
    return {f"{each.method} {each.path}": each for each in api.app.state.api.endpoints()}


def with_ids(api: Any) -> Iterator[tuple[str, str, str, Case]]:
    """Every route with an id of a tenant in its path: name, method, path, case."""
    for name, endpoint in endpoints(api).items():
        for method, path in endpoint.routes:
            if set(re.findall(r"\{(\w+)", path)) & set(UNKNOWN):
                yield name, method, path, CASES[name]


async def test_every_endpoint_has_a_case(api: Any) -> None:
    assert set(CASES) == set(endpoints(api))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.streams])
async def test_success_is_what_the_description_says(
    api: Any, world: Callable[[], Awaitable[World]], name: str
) -> None:
    endpoint, case = endpoints(api)[name], CASES[name]
    for method, path in endpoint.routes:
        here = await world()
        await here.set_up(case.before)
        answer = await here.call(here.owner, method, path + case.query, case.body)
        assert answer.status_code == case.status, (method, path, answer.text)
        if case.status >= 400:
            assert case.status in endpoint.refusals
            assert set(answer.json()) >= {"error", "message"}
            continue
        media = answer.headers["content-type"].partition(";")[0]
        assert media == (endpoint.media if endpoint.media != "*/*" else "application/json")
        jsonschema_rs.validate(endpoint.answers[case.status], answer.json())
        assert not re.search(r'":\s|,\s"', outside_strings(answer.text)), answer.text


def outside_strings(text: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wrong_states])
async def test_a_wrong_state_is_refused_and_changes_nothing(
    api: Any, world: Callable[[], Awaitable[World]], name: str
) -> None:
    endpoint, case = endpoints(api)[name], CASES[name]
    for calls, status in case.wrong_states:
        here = await world()
        await here.set_up(calls)
        answer = await here.call(here.owner, endpoint.method, endpoint.path, case.body)
        assert answer.status_code == status, (calls, answer.text)
        assert status in endpoint.statuses
        assert set(answer.json()) >= {"error", "message"}


async def test_a_tenant_sees_nothing_of_another(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    """Real ids of another tenant, on every route: the answer of an id that does not exist."""
    owner, stranger = await world(), await world()
    wrong, tried = [], 0
    for name, method, path, case in with_ids(api):
        await owner.set_up(case.before)
        tried += 1
        own = filled(case.body, stranger.ids)
        theirs = await owner.call(stranger.owner, method, path + case.query, own)
        nobodys = await nowhere(stranger).call(stranger.owner, method, path + case.query, own)
        if not same_refusal(theirs, nobodys, owner.ids):
            wrong.append((name, path, theirs.status_code, theirs.text, nobodys.text))
    assert not wrong, "\n".join(map(str, wrong))
    assert tried > 60


async def test_a_tenant_cannot_name_another_ones_things_in_a_body(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    owner, stranger = await world(), await world()
    wrong, tried = [], 0
    for name, endpoint in endpoints(api).items():
        body = CASES[name].body
        if not isinstance(body, dict) or not re.search(r"\{\w+_id\}", json.dumps(body)):
            continue
        tried += 1
        path = filled(endpoint.path, stranger.ids)
        theirs = await owner.call(stranger.owner, endpoint.method, path, body)
        nobodys = await nowhere(stranger).call(stranger.owner, endpoint.method, path, body)
        if not same_refusal(theirs, nobodys, owner.ids):
            wrong.append((name, theirs.status_code, theirs.text, nobodys.text))
    assert not wrong, "\n".join(map(str, wrong))
    assert tried >= 4


def nowhere(world: World) -> World:
    """The same tenant, with ids of things that do not exist."""
    return World(world.api, world.owner, world.ids | UNKNOWN)


def same_refusal(theirs: httpx.Response, nobodys: httpx.Response, ids: Ids) -> bool:
    """404 twice, alike but for the id that was asked for, and nothing of its owner in it."""
    alike = masked(theirs.text) == masked(nobodys.text)
    asked = {value for value in ids.values() if value in str(theirs.url)}
    body = theirs.request.content.decode()
    told = {value for value in ids.values() if len(value) > 8 and value in theirs.text}
    leaks = {each for each in told if each not in asked and each not in body}
    return (
        theirs.status_code == nobodys.status_code == 404
        and alike
        and HUSH not in theirs.text
        and not leaks
    )


def masked(text: str) -> str:
    """The text without what looks like an id."""
    return re.sub(r"unsb-\w+-[0-9a-z-]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)


async def test_lists_hold_only_what_is_ones_own(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    owner, stranger = await world(), await world()
    hidden = [value for name, value in owner.ids.items() if name in UNKNOWN]
    lists = [name for name in CASES if name.startswith("GET") and "{" not in name]
    for name in lists:
        endpoint = endpoints(api)[name]
        if CASES[name].operator:
            continue
        seen = (await stranger.call(stranger.owner, "GET", endpoint.path)).text
        assert not [value for value in (*hidden, owner.owner[0]) if value in seen], name


async def test_every_signed_route_refuses_the_unsigned_and_the_forged(api: Any) -> None:
    pair = api.key()
    for endpoint in endpoints(api).values():
        for method, path in endpoint.routes:
            path = filled(path, UNKNOWN | {"source": "api", "key": "x"})
            unsigned = await api.http.request(method, path)
            forged = await api.call((pair[0], "unsb-sk-wrong"), method, path)
            for answer in (unsigned, forged):
                assert (answer.status_code, answer.json()["valid"]) == (401, False), path
                assert answer.json()["reason"] == "invalid_key", path


async def test_every_signed_route_counts_and_is_counted(api: Any) -> None:
    pair = api.key(tier=1)
    for _ in range(7):
        assert (await api.call(pair, "GET", "/keys/self")).status_code == 200
    for name, endpoint in endpoints(api).items():
        for method, path in endpoint.routes:
            path = filled(path, UNKNOWN | {"source": "api", "key": "x"})
            answer = await api.call(pair, method, path, CASES[name].body)
            assert (answer.status_code, answer.json()["error"]) == (429, "rate_limit_exceeded")
            assert int(answer.headers["retry-after"]) == answer.json()["retry_after"] > 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.slots])
async def test_what_takes_a_slot_is_refused_when_none_is_left(
    api: Any, world: Callable[[], Awaitable[World]], name: str
) -> None:
    endpoint, case = endpoints(api)[name], CASES[name]
    here = await world()
    await here.set_up(case.before)
    free = 8 - (await here.call(here.owner, "POST", "/keys/stats")).json()["active_executions"]
    for _ in range(free):
        assert (await here.call(here.owner, "POST", "/sessions", {})).is_success
    answer = await here.call(here.owner, endpoint.method, endpoint.path, case.body)
    assert answer.status_code == 429, answer.text
    assert answer.json()["error"] == "concurrency_limit_reached"
    assert (answer.json()["active_executions"], answer.json()["concurrency_limit"]) == (8, 8)
    assert answer.headers["retry-after"]


async def test_every_wrong_value_is_refused_by_the_name_of_its_field(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    here = await world()
    wrong, tried = [], 0
    for name, endpoint in endpoints(api).items():
        case = CASES[name]
        offered = case.status < 400
        if not offered or endpoint.takes == "text" or not isinstance(case.body, dict | None):
            continue
        for field, value in wrong_values(endpoint):
            beside = LOOKED_AT_WITH.get(f"{name} {field}", {})
            body = {**(case.body or {}), **beside, field: value}
            answer = await here.call(here.owner, endpoint.method, endpoint.path, body)
            tried += 1
            named = field in answer.json().get("message", "")
            if answer.status_code != 400 or not named:
                wrong.append((name, field, value, answer.status_code, answer.text[:200]))
    assert not wrong, "\n".join(map(str, wrong))
    assert tried > 100


def wrong_values(endpoint: Endpoint | Unsigned) -> Iterator[tuple[str, Any]]:
    """Values that the schema of a body forbids, by field."""
    for field, schema in (endpoint.body or {}).get("properties", {}).items():
        candidates: tuple[Any, ...] = (
            7,
            -1,
            2**70,
            1.5,
            True,
            "",
            "no such \x00",
            [],
            [{}],
            {},
            {"a": 1},
        )
        yield from (
            (field, value)
            for value in candidates
            if not jsonschema_rs.is_valid(schema, value) and (field, value) not in TAKEN
        )


async def test_every_wrong_query_is_refused_by_the_name_of_its_field(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    here = await world()
    for name, endpoint in endpoints(api).items():
        await here.set_up(CASES[name].before)
        for field, schema in endpoint.query.items():
            if not {"enum", "minimum", "pattern"} & set(schema):
                continue
            path = f"{endpoint.path}?{field}=no%20such"
            answer = await here.call(here.owner, endpoint.method, path, CASES[name].body)
            assert (answer.status_code, answer.json().get("field")) == (400, field), (
                name,
                answer.text,
            )


async def test_no_body_makes_the_platform_fail(
    api: Any, world: Callable[[], Awaitable[World]]
) -> None:
    here = await world()
    odd = (b"", b"{}", b"null", b"[]", b"1", b"\xff", b"{", b'{"a":' * 40, b'"' + b"\\ud800" + b'"')
    for name, endpoint in endpoints(api).items():
        if CASES[name].streams:
            continue
        for body in odd:
            answer = await here.call(here.owner, endpoint.method, endpoint.path, body)
            assert answer.status_code in endpoint.statuses, (name, body, answer.text)
            assert answer.status_code < 500 or CASES[name].status == 501, (name, answer.text)


PORTAL_BODIES: dict[str, dict[str, Any]] = {
    "/api/invoices": {"tier_level": 1, "months": 1, "payment_method": "LTC"},
    "/api/checkout": {"tier": 1, "months": 1, "currency": "ltc"},
    "/api/gift-cards/create": {"amount_cents": 700, "payment_method": "LTC"},
    "/api/gift-cards/redeem": {"code": "a-b-c-d", "tier_level": 1, "months": 1},
}
PORTAL_STATUSES = {"/api/gift-cards/redeem": 404}
"""Of calls that name something: nobody has that card."""
PORTAL_NAMES = {"tier": "tier_level", "currency": "payment_method"}
"""Refusals of the older checkout name the fields of today."""
PORTAL_LOOKED_AT_WITH = {"amount": "amount_cents", "currency": "payment_method"}


def unsigned(api: Any) -> list[UnsignedRoute]:
    return [route for route in api.app.routes if isinstance(route, UnsignedRoute)]


async def test_every_call_of_the_portal_with_a_body_works(api: Any) -> None:
    taking = [
        route.described
        for route in unsigned(api)
        if route.described.body is not None and route.described.body_media == "application/json"
    ]
    assert {call.path for call in taking} == set(PORTAL_BODIES)
    for call in taking:
        answer = await api.http.post(call.path, json=PORTAL_BODIES[call.path])
        status = PORTAL_STATUSES.get(call.path, 201)
        assert answer.status_code == status, answer.text
        if status in call.answers:
            jsonschema_rs.validate(call.answers[status], answer.json())


async def test_every_wrong_value_of_the_portal_is_refused_by_its_field(api: Any) -> None:
    wrong, tried = [], 0
    for path, right in PORTAL_BODIES.items():
        call = next(route.described for route in unsigned(api) if route.path == path)
        for field, value in wrong_values(call):
            body = {**right, field: value}
            if field not in right:
                body.pop(PORTAL_LOOKED_AT_WITH.get(field, ""), None)
            answer = await api.http.post(path, json=body)
            tried += 1
            names = {field, PORTAL_NAMES.get(field, field)}
            if answer.status_code != 400 or answer.json().get("field") not in names:
                wrong.append((path, field, value, answer.status_code, answer.text[:200]))
    assert not wrong, "\n".join(map(str, wrong))
    assert tried > 50


async def test_what_the_portal_does_not_know_is_not_found(api: Any) -> None:
    tried = 0
    for route in unsigned(api):
        if "{" not in route.path:
            continue
        tried += 1
        for name in ("inv_none", "%00", "..%2f..%2fx", "x" * 3_000, "%F0%9F%90%A2"):
            path = re.sub(r"\{\w+\}", name, route.path)
            answer = await api.http.request(route.described.method, path)
            assert answer.status_code == 404, (path, answer.text)
            assert answer.json()["error"] == "not_found"
    assert tried >= 9


async def test_every_page_and_document_of_the_portal_is_of_its_kind(api: Any) -> None:
    for route in unsigned(api):
        call = route.described
        if call.method != "GET" or "{" in call.path or call.query:
            continue
        answer = await api.http.get(call.path)
        assert answer.status_code == 200, call.path
        assert answer.headers["content-type"].partition(";")[0] == call.media


UNAUDITED = {"POST /keys/validate", "POST /paas/logs", "POST /image"}
"""They change nothing."""


async def test_what_changes_something_is_noted_for_its_tenant(api: Any) -> None:
    """Executions are told by their jobs; every other change is in the audit log."""
    for name, endpoint in endpoints(api).items():
        changes = endpoint.method != "GET" and name not in UNAUDITED
        runs = endpoint.tag in ("executions", "jobs") or endpoint.path.endswith("/execute")
        assert (endpoint.audited is not None) == (changes and not runs), name
