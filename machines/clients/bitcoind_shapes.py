"""How bitcoind shows coins and transactions: pure readers of its JSON."""

from __future__ import annotations

from machines.clients.fields import Fields
from machines.clients.ports import Currency, Sighting, SignedTransaction


def outpoint_of(text: str) -> tuple[str, int]:
    txid, _, output = text.partition(":")
    return txid, int(output)


def outpoint_text(source: Fields) -> str:
    return f"{source.text('txid')}:{source.integer('vout')}"


def inputs_of(decoded: Fields) -> tuple[str, ...]:
    return tuple(outpoint_text(source) for source in decoded.items("vin"))


def paid_by(decoded: Fields, currency: Currency) -> list[tuple[str, int]]:
    return [
        (_payee(output), output.number("value", currency=currency))
        for output in decoded.items("vout")
    ]


def _payee(output: Fields) -> str:
    script = output.inner("scriptPubKey")
    if script is None:
        raise output.refusal(("scriptPubKey",), "expected an object")
    addresses = [script.get("address")] if script.get("address") else script.get("addresses") or []
    # A script of several addresses pays nobody alone; it can match no expected output.
    return str(addresses[0]) if len(addresses) == 1 else ""


def is_spendable(coin: Fields) -> bool:
    # Dogecoin does not say "safe"; there, a stranger's unconfirmed coin is told by its depth.
    safe = coin.get("safe")
    certain = safe is True or (safe is None and coin.integer("confirmations") >= 1)
    return certain and coin.get("spendable") is not False


def same_payment(decoded: Fields, transaction: SignedTransaction, currency: Currency) -> bool:
    same_inputs = set(inputs_of(decoded)) == set(transaction.inputs)
    payment = (transaction.address, transaction.amount_atomic)
    return same_inputs and payment in paid_by(decoded, currency)


def mined(known: Fields, confirmations: int) -> Sighting:
    block_hash = known.optional_text("blockhash")
    return Sighting(where="mined", confirmations=confirmations, block_hash=block_hash)
