"""JSON-RPC as wallets and nodes speak it.

::

    bitcoind family   1.0, Basic; an RPC error arrives as HTTP 500 or 404 with a JSON error body
    monero            2.0, Digest when a login is set; an RPC error arrives with HTTP 200

A node that starts answers 401 while its cookie is not written yet, then 500 with code -28; a full
work queue answers 500 or 503 in plain text.  So the first 401 in a row is "not ready", the second
is `Unauthorized`, and a 500 without JSON is "overloaded".  Source: payments.md 1.1, 1.4, 1.7.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from typing import Any

import httpx

from engine.secrets import Secret
from machines.clients.ports import ClientError, Rejected, Unauthorized, Unavailable
from machines.clients.replies import Reply, readable, translate
from machines.clients.transport import Transport, parsed


class RpcError(Exception):
    """The node's own error: its code and text.  Wallets translate it; it never leaves them."""

    def __init__(self, method: str, code: int, text: str) -> None:
        super().__init__(f"{method}: {text} (code {code})")
        self.method = method
        self.code = code
        self.text = text


class RpcLogin(httpx.Auth):
    """Answers the server's challenge with the scheme it names, Basic or Digest.

    Basic goes out at once when `eager`: bitcoind never challenges twice.
    """

    def __init__(self, username: str, password: Secret[str], *, eager: bool) -> None:
        self._username = username
        self._password = password
        self._eager = eager
        self._digest = httpx.DigestAuth(username, password.reveal())

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """One request, and a second one only to answer a challenge."""
        if self._eager:
            yield self._basic(request)
            return
        # DigestAuth sends first and answers a Digest challenge; a Basic one is ours to answer.
        flow = self._digest.auth_flow(request)
        response = yield next(flow)
        while True:
            try:
                response = yield flow.send(response)
            except StopIteration:
                break
        if response.status_code == 401 and _challenge(response).startswith("basic"):
            yield self._basic(request)

    def _basic(self, request: httpx.Request) -> httpx.Request:
        pair = f"{self._username}:{self._password.reveal()}".encode()
        request.headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return request


class JsonRpc:
    """One endpoint.  `name` says in messages and logs which one."""

    def __init__(
        self,
        transport: Transport,
        url: str,
        *,
        name: str,
        login: RpcLogin | None = None,
        version_two: bool = False,
    ) -> None:
        self._transport = transport
        self._url = url
        self._name = name
        self._login = login
        self._envelope = {"jsonrpc": "2.0", "id": "0"} if version_two else {"id": "0"}
        self._refusals_in_a_row = 0

    async def call(self, method: str, params: list[Any] | dict[str, Any]) -> Any:
        """The `result`.

        A `Secret` among the parameters is opened only into the request's bytes, and blotted out
        of an error text that echoes it.

        Raises:
            RpcError: the node answered with an error.
            ClientError: no usable answer.
        """
        call = f"{self._name}.{method}"
        answer = await self._post(self._url, {**self._envelope, "method": method, "params": params})
        if isinstance(error := _object_of(answer).get("error"), dict):
            raise RpcError(method, *_code_and_text(error, _secrets_in(params)))
        self._check_status(answer, call)
        data = parsed(answer, call)
        if not isinstance(data, dict) or "result" not in data:
            raise Rejected(f"{call}: field result missing; is this a JSON-RPC server?")
        return data["result"]

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """A plain JSON request beside the RPC endpoint (monerod's `/get_transactions`)."""
        url = f"{self._url.rpartition('/')[0]}/{path}"
        answer = await self._post(url, body)
        self._check_status(answer, f"{self._name}.{path}")
        return parsed(answer, f"{self._name}.{path}")

    async def _post(self, url: str, body: dict[str, Any]) -> Reply:
        sent = json.dumps(body, separators=(",", ":"), default=_reveal).encode()
        call = f"{self._name}.{body.get('method', url.rpartition('/')[2])}"
        answer = await self._transport.exchange("POST", url, call=call, body=sent, auth=self._login)
        if answer.status == 401:
            raise self._refused(answer, call)
        self._refusals_in_a_row = 0
        return answer

    def _check_status(self, answer: Reply, call: str) -> None:
        if answer.status == 500:
            raise Unavailable(f"{call}: status 500 without a JSON-RPC error", kind="overloaded")
        if not 200 <= answer.status < 300:
            now_ms = self._transport.clock_ms()
            raise translate(answer, call=call, repeatable=True, now_ms=now_ms)

    def _refused(self, answer: Reply, call: str) -> ClientError:
        self._refusals_in_a_row += 1
        if self._refusals_in_a_row == 1:
            return Unavailable(f"{call}: status 401; it may be starting", kind="not_ready")
        message = f"{call}: status 401 again: user name or password of the RPC is wrong"
        return Unauthorized(message, reason="invalid_key", server_ms=answer.server_ms)


def _object_of(answer: Reply) -> dict[str, Any]:
    try:
        data = answer.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _code_and_text(error: dict[str, Any], secrets: list[str]) -> tuple[int, str]:
    code, text = error.get("code"), error.get("message")
    text = text if isinstance(text, str) else "no message"
    for secret in secrets:
        text = text.replace(secret, "***")
    return code if isinstance(code, int) else 0, readable(text)


def _secrets_in(params: list[Any] | dict[str, Any]) -> list[str]:
    values = params.values() if isinstance(params, dict) else params
    return [value.reveal() for value in values if isinstance(value, Secret) and value.reveal()]


def _reveal(value: object) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _challenge(response: httpx.Response) -> str:
    return str(response.headers.get("www-authenticate", "")).strip().lower()
