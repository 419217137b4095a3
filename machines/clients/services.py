"""Services over HTTP.  Visits are unsigned and go through the platform, by the service's host name.

The platform tells the services of one address apart by the `Host` of a request, so a visit needs no
name server: it goes to the platform's own address and names the service in that header.

Source: platform-api.md, section 6.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from engine.secret import Secret
from machines.clients.fields import Fields
from machines.clients.ports import Credentials, Rejected, Unavailable
from machines.clients.ports.services import Answer, ServiceInfo
from machines.clients.replies import readable
from machines.clients.signed import Signed
from machines.clients.snapshots import removed
from machines.clients.transport import Transport, segment

BUILD_SECONDS = 60.0
VISIT_SECONDS = 15.0
TEXT_BYTES_MAX = 4_000


class HttpServices:
    """`Services` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

    async def create(
        self,
        credentials: Credentials,
        *,
        name: str,
        ports: tuple[int, ...],
        bootstrap: str,
        network_mode: str,
        vcpu: int,
        unfreeze_on_demand: bool,
        key: str,
    ) -> ServiceInfo:
        """Create a service, or get again the one this key made."""
        call = "services.create"
        wanted = {
            "name": name,
            "ports": list(ports),
            "network_mode": network_mode,
            "vcpu": vcpu,
            "unfreeze_on_demand": unfreeze_on_demand,
        }
        data = await self._signed.json(
            credentials,
            "POST",
            "/services",
            call,
            body=wanted | _bootstrap(bootstrap),
            key=key,
            read_seconds=BUILD_SECONDS,
        )
        return _service(Fields(data, call))

    async def service(self, credentials: Credentials, service_id: str) -> ServiceInfo:
        """One service, as it is now."""
        call = "services.service"
        path = f"/services/{segment(service_id)}"
        return _service(Fields(await self._signed.json(credentials, "GET", path, call), call))

    async def set_frozen(self, credentials: Credentials, service_id: str, *, frozen: bool) -> None:
        """Freeze or unfreeze it; what is so already stays so."""
        await self._change(credentials, service_id, "freeze" if frozen else "unfreeze")

    async def set_locked(self, credentials: Credentials, service_id: str, *, locked: bool) -> None:
        """Lock or unlock it; what is so already stays so."""
        await self._change(credentials, service_id, "lock" if locked else "unlock")

    async def _change(self, credentials: Credentials, service_id: str, verb: str) -> None:
        path = f"/services/{segment(service_id)}/{verb}"
        await self._signed.reply(
            credentials, "POST", path, f"services.{verb}", body={}, repeatable=True
        )

    async def set_env(self, credentials: Credentials, service_id: str, env: Secret[str]) -> None:
        """Write variables; those that are not named stay as they are."""
        await self._signed.reply(
            credentials,
            "PUT",
            f"/services/{segment(service_id)}/env",
            "services.set_env",
            body={"content": env.reveal()},
        )

    async def redeploy(self, credentials: Credentials, service_id: str, bootstrap: str) -> None:
        """Run the bootstrap given, or the stored one, again."""
        await self._signed.reply(
            credentials,
            "POST",
            f"/services/{segment(service_id)}/redeploy",
            "services.redeploy",
            body=_bootstrap(bootstrap),
            read_seconds=BUILD_SECONDS,
        )

    async def visit(self, url: str, path: str) -> Answer:
        """GET a path of the service that lives under `url`, through the platform."""
        host = urlsplit(url).netloc
        if not host or not path.startswith("/"):
            raise Rejected(f"visit {readable(url)} {readable(path)}: expected a URL and /a/path")
        reply = await self._signed.transport.exchange(
            "GET",
            f"{self._signed.base_url}{path}",
            call="services.visit",
            headers={"Host": host},
            read_seconds=VISIT_SECONDS,
        )
        if reply.status == 429:
            raise Unavailable("services.visit: status 429", kind="concurrency")
        text = reply.body[:TEXT_BYTES_MAX].decode("utf-8", "replace")
        return Answer(status=reply.status, text=text)

    async def destroy(self, credentials: Credentials, service_id: str) -> None:
        """End it for ever; one that is gone is no error."""
        path = f"/services/{segment(service_id)}"
        await removed(self._signed, credentials, path, "services.destroy")


def _bootstrap(text: str) -> dict[str, str]:
    """The field for a script or a URL; nothing for the stored one."""
    if not text:
        return {}
    is_url = text.startswith(("http://", "https://"))
    return {"bootstrap" if is_url else "bootstrap_content": text}


def _service(fields: Fields) -> ServiceInfo:
    return ServiceInfo(
        service_id=fields.text("service_id", "id"),
        name=fields.optional_text("name") or "",
        state=fields.text("state", "status"),
        reason=fields.optional_text("reason") or "",
        url=fields.optional_text("url") or "",
        locked=bool(fields.get("locked")),
        deployment=fields.integer("deployment", default=1),
    )
