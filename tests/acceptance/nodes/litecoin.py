"""A real litecoind in regtest: one node, two wallets, blocks at the test's word.

::

    node = Litecoin(directory)   bind(0) port, own data directory, wallets `payer` and `shop`
    node.pay / node.mine / node.reverse / node.kill_node / node.close

Traps that are built in (payments.md 1.1): the binary, not Debian's wrapper (which writes to the
home directory); MWEB is switched off; every block is mined to a fresh address, or a
reorganisation would find the hash it has just thrown away; the chain state is flushed before the
node is killed, or it would come back at height 0.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from machines.clients.ports import Currency
from tests.acceptance.nodes.conformance import PASSPHRASE
from tests.acceptance.nodes.daemon import Daemon, NodeError, free_port, need, rpc

BINARY = "/usr/lib/litecoin/litecoind"  # /usr/bin/litecoind is a wrapper that writes ~/.litecoin
NEVER = 9_223_372_036_854_775_807
LOGIN = "u:p"
MATURE_BLOCKS = 110
ATOMIC = 10**8
LOCKED_KEYS = 20
BANK_OUTPUTS = 40
BANK_COINS = 10
FUNDED_BLOCKS = 4
"""One more than the deepest reorganisation of the suites."""


class Litecoin:
    """One litecoind, started and ready; a side of the wallet conformance suite.

    Args:
        directory: an empty one of ours; the caller removes it.
        extra: further options of the daemon.
    """

    currency = Currency.LTC
    network: httpx.AsyncBaseTransport | None = None
    segwit = True
    wallet_paths = True

    def __init__(self, directory: Path, *extra: str) -> None:
        self.port = free_port()
        self.directory = directory
        data = directory / "litecoin"
        data.mkdir()
        self._daemon = Daemon(
            [
                need(BINARY, "litecoind"),
                "-regtest", f"-datadir={data}", "-server", "-listen=0", "-listenonion=0",
                "-dnsseed=0", "-discover=0", "-upnp=0", "-rpcbind=127.0.0.1",
                "-rpcallowip=127.0.0.1", f"-rpcport={self.port}", "-rpcuser=u", "-rpcpassword=p",
                "-fallbackfee=0.0002", "-keypool=1", "-printtoconsole=0",
                f"-vbparams=mweb:{NEVER}:{NEVER}", *extra,
            ],
            directory / "litecoind.log",
        )  # fmt: skip
        self._loaded = ["payer", "shop", "bank"]
        self._start()
        for wallet in self._loaded:
            self.call("createwallet", wallet)
        self.mine(MATURE_BLOCKS, to=self.fresh("payer"))
        self._open_bank()

    def call(self, method: str, *params: Any, wallet: str | None = None) -> Any:
        """One RPC call, to the node or to a wallet."""
        path = f"/wallet/{wallet}" if wallet else "/"
        return rpc(self.port, path, method, list(params), LOGIN)

    def url(self) -> str:
        """Where its RPC answers."""
        return f"http://127.0.0.1:{self.port}"

    # -- wallets --------------------------------------------------------------------------------

    def fresh(self, wallet: str, label: str = "") -> str:
        """A new address of a wallet."""
        address: str = self.call("getnewaddress", label, "bech32", wallet=wallet)
        return address

    def create_wallet(self, name: str, passphrase: str = "") -> None:
        """Another wallet; encrypted, and locked, when there is a passphrase."""
        self.call("createwallet", name)
        self._loaded.append(name)
        if passphrase:
            self.call("encryptwallet", passphrase, wallet=name)
            self.call("walletpassphrase", passphrase, 600, wallet=name)
            self.call("keypoolrefill", LOCKED_KEYS, wallet=name)  # a locked wallet makes none
            self.call("walletlock", wallet=name)

    def lock_wallet(self) -> str:
        """The name of a locked wallet with some coins."""
        self.create_wallet("safe", PASSPHRASE)
        self.fund("safe", "1")
        return "safe"

    def forget(self, name: str) -> None:
        """A wallet that was unloaded is not loaded again after a restart."""
        self._loaded.remove(name)

    def fund(self, wallet: str, coins: str, *, outputs: int = 1) -> None:
        """Give a wallet coins, in that many outputs, deeper than any reorganisation here."""
        targets = {self.fresh(wallet): str(Decimal(coins) / outputs) for _ in range(outputs)}
        self.call("sendmany", "", targets, wallet="bank")
        self.mine(FUNDED_BLOCKS)

    def _open_bank(self) -> None:
        """Coins that no reorganisation makes immature: those of a miner may become so."""
        targets = {self.fresh("bank"): str(BANK_COINS) for _ in range(BANK_OUTPUTS)}
        self.call("sendmany", "", targets, wallet="payer")
        self.mine(FUNDED_BLOCKS)

    def payments(self, address: str) -> list[int]:
        """What each transaction that the shop counts, unconfirmed ones too, pays the address.

        Returns:
            Atomic units, one for each transaction; the shop's own wallet is the witness.
        """
        found = self.call("listreceivedbyaddress", 0, False, False, address, wallet="shop")
        txids = [txid for entry in found for txid in entry["txids"]]
        paid = []
        for txid in sorted(set(txids)):
            known = self.call("gettransaction", txid, wallet="shop")
            if known["confirmations"] >= 0:
                paid += [
                    int(detail["amount"] * ATOMIC)
                    for detail in known["details"]
                    if detail["category"] == "receive" and detail["address"] == address
                ]
        return paid

    def depth(self, txid: str, wallet: str = "payer") -> int:
        """Confirmations, negative for a transaction that lost."""
        depth: int = self.call("gettransaction", txid, wallet=wallet)["confirmations"]
        return depth

    # -- the chain ------------------------------------------------------------------------------

    def height(self) -> int:
        """Of the best block."""
        height: int = self.call("getblockcount")
        return height

    def mine(self, count: int, *, to: str | None = None) -> list[str]:
        """Blocks with what the mempool holds, each to a fresh address: their hashes."""
        if to is not None:
            mined: list[str] = self.call("generatetoaddress", count, to)
            return mined
        return [self.call("generatetoaddress", 1, self.fresh("payer"))[0] for _ in range(count)]

    def mine_only(self, *transactions: str) -> str:
        """One block with exactly these raw transactions or txids, none by default."""
        block: dict[str, str] = self.call("generateblock", self.fresh("payer"), list(transactions))
        return block["hash"]

    def mempool(self) -> set[str]:
        """Txids that wait."""
        return set(self.call("getrawmempool"))

    def reverse(self, depth: int) -> str:
        """Throw the newest blocks away; their transactions go back to the mempool.

        Returns:
            The hash of the lowest block thrown away.
        """
        lowest: str = self.call("getblockhash", self.height() - depth + 1)
        self.call("invalidateblock", lowest)
        return lowest

    def reorganise(self, depth: int, *, grow: int = 1, empty: bool = False) -> None:
        """A longer chain takes over: `depth` blocks go, `depth + grow` come."""
        self.reverse(depth)
        for _ in range(depth + grow):
            self.mine_only() if empty else self.mine(1)

    def double_spend(self, inputs: tuple[str, ...], wallet: str) -> str:
        """A signed transaction that gives the same inputs back to their wallet: its bytes."""
        sources = []
        for outpoint in inputs:
            txid, vout = outpoint.split(":")
            raw = self.call("gettransaction", txid, wallet=wallet)["hex"]
            spent = self.call("decoderawtransaction", raw)["vout"][int(vout)]
            sources.append({
                "txid": txid, "vout": int(vout), "amount": str(spent["value"]),
                "scriptPubKey": spent["scriptPubKey"]["hex"],
            })  # fmt: skip
        total = sum(Decimal(source["amount"]) for source in sources)
        target = {self.fresh(wallet): str(total - Decimal("0.01"))}
        places = [{"txid": source["txid"], "vout": source["vout"]} for source in sources]
        raw = self.call("createrawtransaction", places, [target])
        # With their outputs told: the node itself takes them for spent.
        signed = self.call("signrawtransactionwithwallet", raw, sources, wallet=wallet)
        assert signed["complete"], signed
        rival: str = signed["hex"]
        return rival

    # -- the process ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the chain state: a solo node that dies without it comes back at height 0."""
        self.call("gettxoutsetinfo")

    def kill_node(self) -> None:
        """SIGKILL, after a flush.  Locks and the mempool are gone; the chain is not."""
        self.flush()
        self._daemon.kill()

    def start_again(self) -> None:
        """After `kill_node`: the same data, the same wallets."""
        self._start()
        for wallet in self._loaded:
            self._load(wallet)

    def close(self) -> None:
        """End the process; nothing of it is left but its directory."""
        self._daemon.stop()

    def _start(self) -> None:
        self._daemon.start()
        self._daemon.wait_until(lambda: self.call("getblockcount"))

    def _load(self, wallet: str) -> None:
        try:
            self.call("loadwallet", wallet)
        except NodeError as error:
            if "already loaded" not in error.text:
                raise
