"""The 59 tools: their names, what they send, and that the platform serves every one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.routing import Match
from typer.testing import CliRunner

from machines import cli
from machines.agents.tools import BY_NAME, TOOLS, Tool, ToolRequest, request_of

ROOT = Path(__file__).resolve().parents[3]
NAMES = """
    executeCodeAsync getJob execute run runAsync listJobs deleteJob getLanguages getShells
    createSession getSession listSessions executeInSession freezeSession unfreezeSession lockSession
    unlockSession createSessionSnapshot restoreSession deleteSession createService getService
    listServices executeInService freezeService unfreezeService lockService unlockService
    redeployService getServiceLogs createServiceSnapshot getServiceEnv setServiceEnv
    deleteServiceEnv deleteService createSnapshot getSnapshot listSnapshots lockSnapshot
    unlockSnapshot restoreSnapshot cloneSnapshot deleteSnapshot publishImage getImage listImages
    lockImage unlockImage grantImageAccess revokeImageAccess transferImage setImageVisibility
    spawnFromImage getImageTrustedKeys deleteImage healthCheck getClusterStatus getSystemStats
    listPools
"""
IN_THE_PAPER = """
    run execute executeCodeAsync runAsync createSession executeInSession freezeSession
    unfreezeSession createService executeInService redeployService freezeService unfreezeService
    createSnapshot cloneSnapshot restoreSnapshot publishImage spawnFromImage setImageVisibility
    healthCheck getLanguages getShells getClusterStatus
"""


def test_there_are_the_59_of_the_paper() -> None:
    assert len(TOOLS) == len(BY_NAME) == 59
    assert set(BY_NAME) == set(NAMES.split())
    assert set(IN_THE_PAPER.split()) < set(BY_NAME)
    assert Counter(tool.category for tool in TOOLS) == {
        "execution": 7, "languages": 2, "sessions": 11, "services": 15, "snapshots": 8,
        "images": 12, "system": 4,
    }  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_is_whole(tool: Tool) -> None:
    schema = tool.parameters
    jsonschema_rs.meta.validate(schema)
    properties = schema["properties"]
    assert set(schema["required"]) <= set(properties)
    assert schema["additionalProperties"] is False
    assert all(each["description"] for each in properties.values())
    named = set(re.findall(r"\{(\w+)\}", tool.path))
    assert named <= set(schema["required"]), "what is in the path has to be given"
    assert set(tool.query) <= set(properties)
    assert tool.text is None or tool.text in schema["required"]
    assert tool.method != "GET" or named == set(properties), "a GET has no body"
    assert tool.description.endswith(".")


async def test_the_platform_serves_every_one(embed: Any) -> None:
    embedded = await embed()
    for tool in TOOLS:
        path = re.sub(r"\{\w+\}", "some-id", tool.path)
        scope = {"type": "http", "method": tool.method, "path": path, "headers": []}
        found = [route.matches(scope)[0] for route in embedded.app.routes]
        assert Match.FULL in found, f"{tool.method} {tool.path}"


@pytest.mark.parametrize(
    ("name", "arguments", "sent"),
    [
        ("healthCheck", {}, ("GET", "/health", None, None)),
        ("getSession", {"session_id": "a/b"}, ("GET", "/sessions/a%2Fb", None, None)),
        ("createSession", {}, ("POST", "/sessions", {}, None)),
        ("createSession", {"ttl": 0, "shell": None}, ("POST", "/sessions", {"ttl": 0}, None)),
        ("executeInSession", {"session_id": "s", "command": "ls"},
         ("POST", "/sessions/s/execute", {"command": "ls"}, None)),
        ("run", {"code": "#!/bin/sh\n", "ttl": 5, "env": {"A": "b c"}},
         ("POST", "/run?ttl=5&env=%7B%22A%22%3A%22b+c%22%7D", None, "#!/bin/sh\n")),
        ("runAsync", {"code": "x", "network_mode": "zerotrust"},
         ("POST", "/run/async?network_mode=zerotrust", None, "x")),
        ("deleteServiceEnv", {"service_id": "s", "keys": ["A"]},
         ("DELETE", "/services/s/env", {"keys": ["A"]}, None)),
        ("setServiceEnv", {"service_id": "s", "env": {"A": "1"}},
         ("PUT", "/services/s/env", {"env": {"A": "1"}}, None)),
        ("deleteSession", {"session_id": "s"}, ("DELETE", "/sessions/s", None, None)),
        ("grantImageAccess", {"image_id": "i", "api_key": "k"},
         ("POST", "/images/i/grant", {"api_key": "k"}, None)),
    ],
)  # fmt: skip
def test_what_is_sent(name: str, arguments: dict[str, Any], sent: tuple[Any, ...]) -> None:
    method, path, body, text = sent
    request = ToolRequest(method=method, path=path, body=body, text=text)
    assert request_of(BY_NAME[name], arguments) == request


def test_the_command_lists_them_with_schemas() -> None:
    done = CliRunner().invoke(cli.cli, ["tools", "--json"])
    listed = json.loads(done.stdout)
    assert (done.exit_code, listed["count"], len(listed["tools"])) == (0, 59, 59)
    assert [one["name"] for one in listed["tools"]] == list(BY_NAME)
    assert listed["tools"][0]["parameters"] == BY_NAME["execute"].parameters
    assert {"provision_key", "self_sandbox"} < {one["name"] for one in listed["capabilities"]}
    people = CliRunner().invoke(cli.cli, ["tools"])
    assert "freezeSession" in people.stdout and "provision_key" in people.stdout
    shown = json.loads(CliRunner().invoke(cli.cli, ["tools", "--manifest"]).stdout)
    assert len(shown["capabilities"]) == 59 + len(listed["capabilities"]) + 1


def test_listing_them_is_quick_and_needs_no_machine() -> None:
    program = (
        "import sys, machines.agents.capabilities\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('statemachine', 'httpx', 'sqlalchemy', 'mcp') or m.startswith('machines.flows')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tools_are_values() -> None:
    tool = BY_NAME["execute"]
    assert msgspec.convert(msgspec.to_builtins(tool), Tool) == tool
