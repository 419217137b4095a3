"""How bitcoind shows coins and transactions: pure readers of its JSON."""

from __future__ import annotations

from machines.clients.fields import Fields
from machines.clients.ports import Currency, Sighting, SignedTransaction


def outpoint_of(text: str) -> tuple[str, int]:
    """Txid and output number of `txid:vout`."""
    txid, _, output = text.partition(":")
    return txid, int(output)


def outpoint_text(source: Fields) -> str:
    """An input or a coin as `txid:vout`."""
    return f"{source.text('txid')}:{source.integer('vout')}"


def inputs_of(decoded: Fields) -> tuple[str, ...]:
    """The outpoints a decoded transaction spends."""
    return tuple(outpoint_text(source) for source in decoded.items("vin"))


def paid_by(decoded: Fields, currency: Currency) -> list[tuple[str, int]]:
    """Address and atomic units of each output; the address is empty where nobody alone is paid."""
    return [
        (_payee(output), output.number("value", currency=currency))
        for output in decoded.items("vout")
    ]


def _payee(output: Fields) -> str:
    script = output.inner("scriptPubKey")
    if script is None:
        raise output.refusal(("scriptPubKey",), "expected an object")
    if script.get("address") is not None:
        return script.text("address")
    # A script of several addresses, or of none, pays nobody alone: it matches no expected output.
    addresses = script.array("addresses") if script.get("addresses") is not None else []
    return str(addresses[0]) if len(addresses) == 1 else ""


def is_spendable(coin: Fields) -> bool:
    """Whether an entry of `listunspent` can be spent now."""
    # Dogecoin does not say "safe"; there, a stranger's unconfirmed coin is told by its depth.
    safe = coin.get("safe")
    certain = safe is True or (safe is None and coin.integer("confirmations") >= 1)
    return certain and coin.get("spendable") is not False


def same_payment(decoded: Fields, transaction: SignedTransaction, currency: Currency) -> bool:
    """Whether a decoded transaction is ours, though its txid may differ."""
    same_inputs = set(inputs_of(decoded)) == set(transaction.inputs)
    payment = (transaction.address, transaction.amount_atomic)
    return same_inputs and payment in paid_by(decoded, currency)


def mined(known: Fields, confirmations: int) -> Sighting:
    """The sighting for what `gettransaction` says of a transaction in a block."""
    block_hash = known.optional_text("blockhash")
    return Sighting(where="mined", confirmations=confirmations, block_hash=block_hash)
