"""Clients of a platform that dies under them, and what they were told: their ledgers of facts.

A client owns what it makes: nobody else changes it, so its ledger is exact.  A fact is a set of
values that may be true: one, once an answer said so; two, while the answer to a change never came.

::

    before the request   fact = {old, new}
    answer 2xx           fact = {new}          answer 4xx, 5xx   fact = {old}
    the server died      fact = {old, new}, and the same request goes again, with its
                         Idempotency-Key, to the platform that was started next

`Client.check` asks a platform that is at rest for every fact.  What a client owns is never 404.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.platform_wire import Answer, Cut, Pair, Wire

RPC_AUTH = ("turtles", "turtles")


class Fact:
    """A value that is known, or one of a few while a change is in doubt."""

    def __init__(self, value: Hashable) -> None:
        self.may_be: set[Hashable] = {value}

    @property
    def value(self) -> Any:
        """One of them."""
        return next(iter(self.may_be))

    def settle(self, value: Hashable) -> None:
        """It was said to be this."""
        self.may_be = {value}

    def explains(self, seen: Hashable) -> bool:
        """Whether what was seen may be; from then on that is what it is."""
        if seen not in self.may_be:
            return False
        self.may_be = {seen}
        return True


@dataclass
class Thing:
    """A session, service, snapshot, image or job that a client made."""

    kind: str
    identity: str
    once: str
    order: tuple[str, str, Any]
    facts: dict[str, Fact] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    life: int = 0
    marker: str = ""
    name: str = ""
    source: str = ""
    port: bool = False

    @property
    def gone(self) -> bool:
        """Whether its deletion was asked for."""
        return True in self.facts["deleted"].may_be


@dataclass
class Invoice:
    """An invoice of this client, and what came of it."""

    identity: str
    once: str
    order: dict[str, Any]
    address: str
    amount: str
    paid: bool = False
    public_key: str = ""
    secret: str = ""
    card: Card | None = None


@dataclass
class Card:
    """A gift card.  `balances`: what may be left on it."""

    identity: str
    code: str | None
    balances: set[int]
    redeemed: dict[str, dict[str, Any]] = field(default_factory=dict)


class Twin(threading.Thread):
    """A request beside another."""

    def __init__(self, client: Client, order: tuple[str, str, Any], once: str) -> None:
        super().__init__(daemon=True)
        self._request = (client, order, once)
        self.answer: Answer | None = None

    def run(self) -> None:
        """Send it; without an answer when the server went away."""
        client, order, once = self._request
        with suppress(Cut):
            self.answer = client.ask(*order, once=once)


CREATED = {
    "session": ("/sessions/", "session_id"),
    "service": ("/services/", "service_id"),
    "snapshot": ("/snapshots/", "snapshot_id"),
    "image": ("/images/", "image_id"),
    "job": ("/jobs/", "job_id"),
}
FIXED = {
    "session": ("shell", "network_mode", "created_at"),
    "service": ("created_at", "network_mode"),
    "snapshot": ("status", "size_bytes", "created_at", "level"),
    "image": ("status", "size_bytes", "created_at", "level"),
    "job": ("created_at", "language"),
}
ENDED_JOBS = ("completed", "timeout", "failed", "cancelled", "lost")


class Client(threading.Thread):
    """One thread of requests, with its ledger."""

    def __init__(self, name: str, wire: Wire, pair: Pair, other: str, seed: str) -> None:
        super().__init__(name=name, daemon=True)
        self.wire = wire
        self.pair = pair
        self.other = other
        self.chance = random.Random(seed)
        self.things: list[Thing] = []
        self.invoices: list[Invoice] = []
        self.life = 0
        self._cut_in = -1
        self._number = 0
        self.doubtful: set[str] = set()
        self.refused: set[str] = set()
        self.lost: Counter[str] = Counter()
        self._pending: Callable[[], None] | None = None
        self._actions = _weights(self)

    # -- living --------------------------------------------------------------------------------

    def run(self) -> None:
        """Act until the gate says that it is over."""
        gate = self.wire.gate
        while True:
            self.life = gate.enter(self._cut_in)
            try:
                if gate.over:
                    return
                self._step()
            except Cut:
                self._cut_in = self.life
            except Exception as error:  # noqa: BLE001 - told, and the round fails
                self.wire.wrong(f"client {self.name}: {type(error).__name__}: {error}")
            finally:
                gate.leave()

    def _step(self) -> None:
        if self._pending is not None:
            again, self._pending = self._pending, None
            again()
            return
        names = list(self._actions)
        self._actions[self.chance.choices(names, [self._weight(each) for each in names])[0]]()

    def _weight(self, name: str) -> int:
        return WEIGHTS[name]

    def fresh(self, word: str) -> str:
        """A name that nobody has."""
        self._number += 1
        return f"{word}-{self.name}-{self._number}"

    def ask(self, method: str, path: str, body: Any = None, once: str | None = None) -> Answer:
        """A signed request."""
        return self.wire.send(method, path, body, pair=self.pair, once=once)

    def resolve(self) -> None:
        """Send again what was cut.

        Raises:
            Cut: the server went away.
        """
        self.life = self.wire.gate.life
        while self._pending is not None:
            again, self._pending = self._pending, None
            again()
        self.doubtful.clear()

    # -- making --------------------------------------------------------------------------------

    def make(self, kind: str, path: str, body: dict[str, Any], **known: Any) -> Thing | None:
        """Create something, under an idempotency key; None when it was refused."""
        once = self.fresh("once")
        return self._make(kind, once, ("POST", path, body), known)

    def _make(
        self, kind: str, once: str, order: tuple[str, str, Any], known: dict[str, Any]
    ) -> Thing | None:
        self._pending = lambda: self._made_again(kind, once, order, known)
        self.doubtful.add(once)
        twin = self.ask_twice(order, once) if self.chance.random() < 0.15 else None
        answer = self.ask(*order, once=once)
        if twin is not None:
            twin.join()
            if twin.answer is None:
                raise Cut
            self._same(kind, answer, twin.answer)
        self._pending = None
        self.doubtful.discard(once)
        return self._register(kind, once, order, known, answer)

    def ask_twice(self, order: tuple[str, str, Any], once: str) -> Twin:
        """The same request at the same moment."""
        twin = Twin(self, order, once)
        twin.start()
        return twin

    def _same(self, kind: str, one: Answer, other: Answer) -> None:
        name = CREATED[kind][1]
        if one.good and other.good and one.body[name] != other.body[name]:
            self.wire.wrong(f"{kind}: two for one key at once: {one.text} {other.text}"[:500])

    def _made_again(
        self, kind: str, once: str, order: tuple[str, str, Any], known: dict[str, Any]
    ) -> None:
        self._make(kind, once, order, known)

    def _register(
        self,
        kind: str,
        once: str,
        order: tuple[str, str, Any],
        known: dict[str, Any],
        answer: Answer,
    ) -> Thing | None:
        if not answer.good:
            # A job whose outcome is not known is refused under its key, and its row stays.
            self.refused.add(once)
            return None
        thing = Thing(kind, answer.body[CREATED[kind][1]], once, order, life=self.life, **known)
        # What a dead platform was making is not made again under the same key.
        thing.facts["deleted"] = Fact(answer.body.get("status") == "deleted")
        if kind in ("service", "session", "snapshot", "image"):
            thing.facts["locked"] = Fact(False)
        if kind == "service":
            thing.facts["vault"] = Fact(None)
            thing.facts["custom_domains"] = Fact(())
            thing.facts["vcpu"] = Fact(answer.body["vcpu"])
        if kind == "image":
            thing.facts["visibility"] = Fact("private")
            thing.facts["trusted"] = Fact(())
        if kind == "job":
            thing.facts["status"] = Fact(answer.body["status"])
        for name in FIXED[kind]:
            if name in answer.body and not (kind == "image" and name == "status"):
                thing.fixed[name] = answer.body[name]
        if answer.body.get("status") in ("deleted", "failed"):
            self.lost[f"{kind} {answer.body['status']}"] += 1
        self.things.append(thing)
        return thing

    def repeat_a_creation(self) -> None:
        """The same request with the same key: the same thing, or a documented refusal."""
        if thing := self.pick("session", "service", "snapshot", "image", "job", gone=True):
            self.repeat(thing)

    def repeat(self, thing: Thing) -> None:
        """Ask again for something that was made: never a second one."""
        answer = self.ask(*thing.order, once=thing.once)
        if answer.good:
            if (now := answer.body[CREATED[thing.kind][1]]) != thing.identity:
                self.wire.wrong(f"{thing.kind} {thing.identity}: its key repeated gave {now}")
        elif answer.status not in (404, 409, 410, 429, 503):
            self.wire.wrong(f"{thing.kind}: its key repeated: {answer.status} {answer.text[:200]}")

    # -- choosing ------------------------------------------------------------------------------

    def pick(self, *kinds: str, alive: bool = False, gone: bool = False) -> Thing | None:
        """One of this client's things; `alive`: made or redeployed in this life."""
        found = [
            each
            for each in self.things
            if each.kind in kinds
            and (gone or not each.gone)
            and (not alive or each.life == self.life)
        ]
        return self.chance.choice(found) if found else None

    def change(
        self, thing: Thing, fact: str, value: Hashable, method: str, path: str, body: Any = None
    ) -> Answer:
        """A request that makes a fact another one."""
        known = thing.facts[fact]
        before = set(known.may_be)
        known.may_be = before | {value}
        answer = self.ask(method, path, body)
        if answer.good:
            known.settle(value)
        else:
            known.may_be = before
            self.never_unknown(thing, answer)
        return answer

    def never_unknown(self, thing: Thing, answer: Answer) -> None:
        """What somebody owns and did not delete is known."""
        if answer.status == 404 and not thing.gone and answer.error != "no_vault":
            self.wire.wrong(f"{thing.kind} {thing.identity}: {answer.text[:200]}")

    def path(self, thing: Thing) -> str:
        """Where it is."""
        return CREATED[thing.kind][0] + thing.identity

    # -- sessions ------------------------------------------------------------------------------

    def create_session(self) -> None:
        """At most two of each client live."""
        live = [e for e in self.things if e.kind == "session" and e.life == self.life]
        if sum(not each.gone for each in live) < 2:
            self.make("session", "/sessions", {"network_mode": "zerotrust", "shell": "bash"})

    def command(self) -> None:
        """A command, and what it says."""
        if (thing := self.pick("session", "service", alive=True)) is not None:
            self._say(thing, self.fresh("word"))

    def _say(self, thing: Thing, word: str) -> bool:
        answer = self.ask("POST", self.path(thing) + "/execute", {"command": f"echo {word}"})
        ran = answer.good and answer.body["status"] == "completed"
        if ran and word not in answer.body["stdout"]:
            self.wire.wrong(f"{thing.kind} {thing.identity}: echo said {answer.text[:600]}")
        self.never_unknown(thing, answer)
        return answer.good

    def toggle(self) -> None:
        """Freeze, let go on, boost, extend."""
        if (thing := self.pick("session", "service", alive=True)) is None:
            return
        verbs = ["freeze", "unfreeze", "freeze", "unfreeze"]
        verbs += ["boost", "unboost", "extend"] if thing.kind == "session" else []
        verb = self.chance.choice(verbs)
        body = {"vcpu": 2} if verb == "boost" else {"ttl": 100} if verb == "extend" else {}
        self.never_unknown(thing, self.ask("POST", f"{self.path(thing)}/{verb}", body))

    def lock(self) -> None:
        """Lock something, or unlock it."""
        kind = self.chance.choice(("session", "service", "snapshot", "image"))
        if (thing := self.pick(kind)) is not None:
            locked = self.chance.random() < 0.5
            verb = "lock" if locked else "unlock"
            self.change(thing, "locked", locked, "POST", f"{self.path(thing)}/{verb}", {})

    def delete(self) -> None:
        """Delete something; what is locked is refused."""
        if (thing := self.pick("session", "session", "service", "snapshot", "image")) is None:
            return
        answer = self.change(thing, "deleted", True, "DELETE", self.path(thing))
        ended = thing.kind == "session" and thing.life != self.life
        if answer.good and not ended and thing.facts["locked"].may_be == {True}:
            self.wire.wrong(f"{thing.kind} {thing.identity}: deleted although it is locked")

    # -- services ------------------------------------------------------------------------------

    def create_service(self) -> None:
        """With a program that answers on its port, half of the time."""
        if sum(e.kind == "service" and not e.gone for e in self.things) >= 3:
            return
        name = self.fresh("svc")
        body: dict[str, Any] = {"name": name, "network_mode": "zerotrust"}
        body["unfreeze_on_demand"] = self.chance.random() < 0.5
        if port := self.chance.random() < 0.6:
            body |= {"ports": [8000], "bootstrap_content": _program(name)}
        self.make("service", "/services", body, name=name, port=port)

    def visit(self) -> None:
        """HTTP through the Host name of a service."""
        thing = self.pick("service")
        if thing is None or not thing.port:
            return
        named = thing.facts["custom_domains"].may_be
        host = {"Host": f"{thing.name}.on.localhost"}
        if named == {(f"{thing.name}.example",)}:
            host = {"Host": f"{thing.name}.example"}
        answer = self.wire.send("GET", "/index.html", headers=host, door=True)
        if answer.good and answer.text.strip() != thing.name:
            self.wire.wrong(f"service {thing.identity}: its page says {answer.text[:100]!r}")
        if answer.error == "no_such_service" and not thing.gone:
            self.wire.wrong(f"service {thing.identity}: {answer.text[:200]}")

    def redeploy(self) -> None:
        """Start it again, also after the platform's own restart."""
        if (thing := self.pick("service")) is not None:
            body = {} if thing.port else {"bootstrap_content": "echo ready"}
            answer = self.ask("POST", self.path(thing) + "/redeploy", body)
            self.never_unknown(thing, answer)
            if answer.good:
                thing.life = self.life

    def resize(self) -> None:
        """Other vCPUs."""
        if (thing := self.pick("service", alive=True)) is not None:
            vcpu = self.chance.choice((1, 2))
            self.change(thing, "vcpu", vcpu, "PATCH", self.path(thing), {"vcpu": vcpu})

    def name_domains(self) -> None:
        """A custom domain, or none."""
        if (thing := self.pick("service")) is not None:
            domains = self.chance.choice(((), (f"{thing.name}.example",)))
            body = {"custom_domains": list(domains)}
            path = self.path(thing) + "/domains"
            self.change(thing, "custom_domains", domains, "PUT", path, body)

    def write_vault(self) -> None:
        """Set the vault, or delete it."""
        if (thing := self.pick("service")) is None:
            return
        if self.chance.random() < 0.2 and thing.facts["vault"].may_be != {None}:
            self.change(thing, "vault", None, "DELETE", self.path(thing) + "/env")
            return
        value = f"vault{self.chance.randrange(10**12):012d}"
        self.wire.keep_secret(value)
        body = {"env": {"SECRET": value}}
        self.change(thing, "vault", value, "PUT", self.path(thing) + "/env", body)

    # -- snapshots and images ------------------------------------------------------------------

    def take_snapshot(self) -> None:
        """Mark something and keep it, hot or cold."""
        source = self.pick("session", "service", alive=True)
        if source is None or sum(e.kind == "snapshot" and not e.gone for e in self.things) >= 5:
            return
        marker = self.fresh("mark")
        command = {"command": f"echo {marker} > /root/marker"}
        answer = self.ask("POST", self.path(source) + "/execute", command)
        if answer.good and answer.body["status"] == "completed":
            hot = self.chance.random() < 0.5
            known = {"marker": marker, "source": source.identity}
            self.make("snapshot", self.path(source) + "/snapshot", {"hot": hot}, **known)

    def restore(self) -> None:
        """Write a snapshot over what it was taken of."""
        thing = self.pick("snapshot")
        source = next((e for e in self.things if thing and e.identity == thing.source), None)
        if thing is None or source is None:
            return
        path = self.path(thing) if source.kind == "service" else self.path(source)
        answer = self.ask("POST", path + "/restore", {"snapshot_id": thing.identity})
        if answer.good and source.life == self.life:
            self._read_marker(source, thing.marker)

    def _read_marker(self, thing: Thing, marker: str) -> None:
        command = {"command": "cat /root/marker"}
        answer = self.ask("POST", self.path(thing) + "/execute", command)
        ran = answer.good and answer.body["status"] == "completed"
        if ran and marker not in answer.body["stdout"]:
            self.wire.wrong(
                f"{thing.kind} {thing.identity}: its marker is {answer.text[:300]}, not {marker}"
            )

    def copy(self) -> None:
        """A session out of a snapshot, or a service out of an image."""
        if (thing := self.pick("snapshot", "image")) is None:
            return
        if thing.kind == "snapshot":
            body: dict[str, Any] = {"type": "session"}
            made = self.make("session", self.path(thing) + "/clone", body)
        else:
            name = self.fresh("spawn")
            body = {"name": name, "bootstrap_content": "echo spawned", "ports": []}
            made = self.make("service", self.path(thing) + "/spawn", body, name=name)
        if made is not None and made.life == self.life:
            self._read_marker(made, thing.marker)

    def publish(self) -> None:
        """An image of a snapshot, or of what lives."""
        if sum(e.kind == "image" and not e.gone for e in self.things) >= 5:
            return
        source = self.pick("snapshot", "snapshot", "image")
        if source is not None and source.kind == "image":
            self.make("image", self.path(source) + "/clone", {}, marker=source.marker)
        elif source is not None:
            order = {"source_type": "snapshot", "source_id": source.identity}
            self.make("image", "/images", order, marker=source.marker)

    def share(self) -> None:
        """Who else may use an image."""
        if (thing := self.pick("image")) is None:
            return
        if self.chance.random() < 0.5:
            to = self.chance.choice(("private", "unlisted", "public"))
            body = {"visibility": to}
            self.change(thing, "visibility", to, "POST", self.path(thing) + "/visibility", body)
            return
        granted = self.chance.random() < 0.6
        verb, value = ("grant", (self.other,)) if granted else ("revoke", ())
        body = {"trusted_api_key": self.other}
        self.change(thing, "trusted", value, "POST", f"{self.path(thing)}/{verb}", body)

    # -- executions ----------------------------------------------------------------------------

    def execute(self) -> None:
        """Code of its own, waited for."""
        word = self.fresh("word")
        thing = self.make("job", "/execute", {"language": "bash", "code": f"echo {word}"})
        if thing is not None:
            thing.marker = word
            self._look_at_job(thing)

    def submit(self) -> None:
        """Code in the background; some of it is cancelled."""
        seconds = self.chance.choice((0, 0, 1, 3))
        code = {"language": "bash", "code": f"sleep {seconds}; echo done"}
        thing = self.make("job", "/execute/async", code)
        if thing is not None and self.chance.random() < 0.4:
            answer = self.ask("DELETE", self.path(thing))
            if answer.good and answer.body["status"] in ENDED_JOBS:
                thing.facts["status"].settle(answer.body["status"])

    def _look_at_job(self, thing: Thing) -> None:
        """An ended job never changes again; the output is what was echoed."""
        answer = self.ask("GET", self.path(thing))
        if not answer.good:
            self.wire.wrong(f"job {thing.identity}: {answer.status} {answer.text[:200]}")
            return
        known, now = thing.facts["status"].value, answer.body["status"]
        if known in ENDED_JOBS and now != known:
            self.wire.wrong(f"job {thing.identity}: was {known}, is {now}")
        if now == "completed" and thing.marker not in answer.body["stdout"]:
            self.wire.wrong(f"job {thing.identity}: stdout {answer.body['stdout'][:100]!r}")
        thing.facts["status"].settle(now)

    # -- money ---------------------------------------------------------------------------------

    def order_key(self) -> None:
        """An invoice for a key."""
        if len(self.invoices) < 6:
            order = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
            self._order("/api/invoices", order, self.fresh("once"))

    def order_card(self) -> None:
        """An invoice for a gift card."""
        if len(self.invoices) < 6:
            order = {"amount_cents": 5000, "payment_method": "LTC"}
            self._order("/api/gift-cards/create", order, self.fresh("once"))

    def _order(self, path: str, order: dict[str, Any], once: str) -> None:
        self._pending = lambda: self._order(path, order, once)
        answer = self.wire.send("POST", path, order, once=once)
        self._pending = None
        if not answer.good:
            self.wire.wrong(f"POST {path}: {answer.status} {answer.text[:200]}")
            return
        made = answer.body
        invoice = Invoice(made["invoice_id"], once, order, made["address"], made["amount"])
        if "gift_card_id" in made:
            self.wire.keep_secret(made["code"])
            invoice.card = Card(made["gift_card_id"], made["code"], {order["amount_cents"]})
        self.invoices.append(invoice)

    def repeat_an_order(self) -> None:
        """The same order with the same key: the same invoice."""
        if not self.invoices:
            return
        known = self.chance.choice(self.invoices)
        path = "/api/gift-cards/create" if known.card else "/api/invoices"
        answer = self.wire.send("POST", path, known.order, once=known.once)
        if answer.good and answer.body["invoice_id"] != known.identity:
            self.wire.wrong(f"invoice {known.identity[:8]}: its key repeated gave another")

    def pay(self) -> None:
        """Pay an invoice, once; one whose payment is in doubt is left."""
        invoice = next((each for each in self.invoices if not each.paid), None)
        if invoice is None:
            return
        self.invoices.remove(invoice)
        params = [invoice.address, invoice.amount]
        body = {"id": 1, "method": "sendtoaddress", "params": params}
        answer = self.wire.send("POST", "/rpc/ltc/wallet/payer", body, auth=RPC_AUTH)
        if answer.good and answer.body.get("error") is None:
            invoice.paid = True
            self.invoices.append(invoice)

    def poll(self) -> None:
        """Ask for a payment; the secret comes once."""
        waiting = [each for each in self.invoices if each.paid and not each.public_key]
        if waiting:
            self._poll(self.chance.choice(waiting))

    def _poll(self, invoice: Invoice) -> str:
        answer = self.wire.send("GET", f"/payment/{invoice.identity}/status")
        if not answer.good:
            self.wire.wrong(f"an invoice's status: {answer.status} {answer.text[:200]}")
            return ""
        state = str(answer.body["status"])
        if state == "completed" and invoice.card is None:
            secret = answer.body.get("secret_key")
            if secret and invoice.secret:
                self.wire.wrong(f"invoice {invoice.identity[:8]}: its secret was told twice")
            if invoice.public_key not in ("", answer.body["public_key"]):
                self.wire.wrong(f"invoice {invoice.identity[:8]}: its key became another")
            self.wire.keep_secret(secret)
            invoice.public_key = answer.body["public_key"]
            invoice.secret = invoice.secret or secret or ""
        elif state == "completed":
            invoice.public_key = "card"
        elif invoice.public_key:
            self.wire.wrong(f"invoice {invoice.identity[:8]}: was completed, is {state}")
        return state

    def regenerate(self) -> None:
        """Another secret for a bought key; the one before is dead."""
        bought = [each for each in self.invoices if each.secret]
        if not bought:
            return
        invoice = self.chance.choice(bought)
        old, invoice.secret = invoice.secret, ""
        answer = self.wire.send("POST", f"/payment/{invoice.identity}/regenerate")
        if answer.good:
            invoice.secret = answer.body["secret_key"]
            self.wire.keep_secret(invoice.secret)
            dead = (invoice.public_key, old)
            if self.wire.send("GET", "/keys/self", pair=dead, may_be=401).good:
                self.wire.wrong(f"key {invoice.public_key}: its old secret still opens")

    def redeem(self) -> None:
        """Spend a part of a card, with a key; repeated, it is spent once."""
        cards = [each.card for each in self.invoices if each.card and each.public_key]
        cards = [each for each in cards if each.code and min(each.balances) >= 700]
        if cards:
            card, once = self.chance.choice(cards), self.fresh("once")
            self._redeem(card, once)
            if self.chance.random() < 0.5 and once in card.redeemed:
                self._repeat_a_redemption(card, once)

    def _repeat_a_redemption(self, card: Card, once: str) -> None:
        order = {"code": card.code, "tier_level": 1, "months": 1}
        answer = self.wire.send("POST", "/api/gift-cards/redeem", order, once=once)
        if answer.good and answer.body["id"] != card.redeemed[once]["id"]:
            self.wire.wrong(f"card {card.identity[:8]}: one key redeemed it twice")

    def _redeem(self, card: Card, once: str) -> None:
        order = {"code": card.code, "tier_level": 1, "months": 1}
        before = set(card.balances)
        self._pending = lambda: self._redeem_again(card, once, before)
        card.balances = before | {each - 700 for each in before}
        answer = self.wire.send("POST", "/api/gift-cards/redeem", order, once=once)
        self._pending = None
        self._redeemed(card, once, before, answer)

    def _redeem_again(self, card: Card, once: str, before: set[int]) -> None:
        card.balances = before
        self._redeem(card, once)

    def _redeemed(self, card: Card, once: str, before: set[int], answer: Answer) -> None:
        if not answer.good:
            card.balances = before
            if answer.status != 429:
                self.wire.wrong(f"redeem: {answer.status} {answer.text[:200]}")
            return
        told, known = answer.body, card.redeemed.get(once)
        if known is not None and known["id"] != told["id"]:
            self.wire.wrong(f"card {card.identity[:8]}: one key redeemed it twice")
        self.wire.keep_secret(told.get("secret_key"))
        if known is None:
            card.balances = {each - 700 for each in before}
            card.redeemed[once] = told
        if told["balance_cents"] not in card.balances:
            self.wire.wrong(
                f"card {card.identity[:8]}: {told['balance_cents']} left, not {card.balances}"
            )
        card.balances = {told["balance_cents"]}

    # -- what must be true ---------------------------------------------------------------------

    def check(self, most: int | None = None) -> int:
        """Ask a platform at rest for every fact, or for `most` of the things; how many.

        Raises:
            Cut: it went away.
        """
        things = list(self.things)
        if most is not None and len(things) > most:
            things = things[-most // 2 :] + self.chance.sample(things[: -most // 2], most // 2)
        for thing in things:
            self._check(thing)
        for invoice in self.invoices:
            self._check_invoice(invoice)
        return len(things) + len(self.invoices)

    def _check(self, thing: Thing) -> None:
        if thing.kind == "job":
            self._look_at_job(thing)
            return
        answer = self.ask("GET", self.path(thing))
        is_gone = not answer.good or answer.body.get("status") in ("deleted", "terminated")
        deleted = thing.facts["deleted"]
        if thing.kind == "session":
            # A session ends with its platform: only that it came back would be wrong.
            if deleted.may_be == {True} and not is_gone:
                self._untrue(thing, "deleted", answer.text[:200])
            if thing.life != self.wire.gate.life and not is_gone:
                self._untrue(thing, "terminated", answer.text[:200])
            if not answer.good and answer.status != 410:
                self._untrue(thing, "known", answer.text[:200])
        elif not deleted.explains(is_gone):
            self._untrue(thing, f"deleted {deleted.may_be}", answer.text[:200])
        if not answer.good or is_gone:
            return
        for name, value in thing.fixed.items():
            if answer.body.get(name) != value:
                self._untrue(thing, f"{name} {value!r}", answer.body.get(name))
        self._check_facts(thing, answer.body)

    def _check_facts(self, thing: Thing, shown: dict[str, Any]) -> None:
        for name in ("locked", "visibility", "vcpu", "custom_domains"):
            fact = thing.facts.get(name)
            if fact is None or name not in shown:
                continue
            seen = tuple(shown[name]) if isinstance(shown[name], list) else shown[name]
            if not fact.explains(seen):
                self._untrue(thing, f"{name} {fact.may_be}", shown[name])
        if thing.kind == "image":
            said = self.ask("GET", self.path(thing) + "/trusted").body["trusted_keys"]
            if not thing.facts["trusted"].explains(tuple(said)):
                self._untrue(thing, f"trusted {thing.facts['trusted'].may_be}", said)
        if thing.kind == "service":
            said = self.ask("POST", self.path(thing) + "/env/export", {})
            content = said.body["content"].strip() if said.good else None
            value = content.partition("=")[2].strip("'\"") if content else None
            if not thing.facts["vault"].explains(value):
                self._untrue(thing, "its vault", f"{said.status} {value and 'another value'}")

    def _untrue(self, thing: Thing, told: str, seen: Any) -> None:
        self.wire.wrong(f"{thing.kind} {thing.identity}: told {told}, now {seen}")

    def _check_invoice(self, invoice: Invoice) -> None:
        self._poll(invoice)
        if invoice.secret:
            answer = self.wire.send("GET", "/keys/self", pair=(invoice.public_key, invoice.secret))
            if not answer.good:
                self.wire.wrong(f"a bought key: {answer.status} {answer.text[:200]}")
        if invoice.card and invoice.public_key:
            shown = self.wire.send("GET", f"/api/gift-cards/{invoice.card.identity}/status").body
            if shown["balance_cents"] not in invoice.card.balances:
                self.wire.wrong(
                    f"card {invoice.card.identity[:8]}: {shown['balance_cents']} cents left, "
                    f"not one of {invoice.card.balances}"
                )

    def copies_hold(self) -> None:
        """A session out of each snapshot, and a service out of each image, holds its marker.

        Raises:
            Cut: the server went away.
        """
        for thing in [each for each in self.things if each.kind in ("snapshot", "image")]:
            if thing.gone or thing.fixed.get("status", "ready") != "ready" or not thing.marker:
                continue
            verb = "clone" if thing.kind == "snapshot" else "spawn"
            body: dict[str, Any] = {"type": "session"} if verb == "clone" else {
                "name": self.fresh("last"), "bootstrap_content": "echo last", "ports": [],
            }  # fmt: skip
            kind = "session" if verb == "clone" else "service"
            made = self.make(kind, f"{self.path(thing)}/{verb}", body)
            if made is None:
                self.wire.wrong(f"{thing.kind} {thing.identity}: its {verb} was refused")
                continue
            self._read_marker(made, thing.marker)
            self.ask("DELETE", self.path(made))

    def unpaid(self) -> list[str]:
        """Paid invoices that are not completed."""
        return [
            each.identity[:8]
            for each in self.invoices
            if each.paid and self._poll(each) != "completed"
        ]


def _program(name: str) -> str:
    return f"cd /root && echo {name} > index.html && exec python3 -m http.server 8000\n"


WEIGHTS = {
    "create_session": 6,
    "command": 6,
    "toggle": 7,
    "lock": 5,
    "delete": 5,
    "create_service": 4,
    "visit": 7,
    "redeploy": 3,
    "resize": 2,
    "write_vault": 4,
    "name_domains": 2,
    "take_snapshot": 6,
    "restore": 3,
    "copy": 4,
    "publish": 5,
    "share": 3,
    "execute": 3,
    "submit": 4,
    "order_key": 2,
    "order_card": 3,
    "pay": 5,
    "poll": 5,
    "redeem": 6,
    "regenerate": 1,
    "repeat_a_creation": 4,
    "repeat_an_order": 1,
}
"""How often each kind of action is taken."""


def _weights(client: Client) -> dict[str, Callable[[], None]]:
    return {name: getattr(client, name) for name in WEIGHTS}
