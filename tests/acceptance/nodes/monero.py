"""A real monerod in regtest with two wallet servers: one pays, the other is the shop's witness.

::

    node = Monero(directory)     restores a chain that was mined once on this machine
    node.mine / node.pop / node.kill_wallet / node.kill_daemon / node.close

Mining the hundred blocks that a first transfer needs takes a minute; they are kept as a tar file
of about a megabyte in a cache directory of this user (`TURTLES_NODES_CACHE`, by default
`~/.cache/turtles-nodes`), never in the repository.

Traps that are built in (payments.md 1.4): `--keep-fakechain`, or a restart empties the chain; 75
blocks before the first transfer (a ring has 16 members); wallets are refreshed by us, not by
waiting; a wallet shows old confirmations after `pop_blocks` until a block comes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.acceptance.nodes.daemon import Daemon, free_port, need, post, rpc

DAEMON = "/usr/bin/monerod"
WALLET_RPC = "/usr/bin/monero-wallet-rpc"
BLOCKS = 100
LAYOUT = 1
"""Raised when a snapshot made by older code would not do."""


class Monero:
    """monerod, and wallet servers with `payer` and `shop` open.

    Args:
        directory: an empty one of ours; the caller removes it.
    """

    def __init__(self, directory: Path, *, restored: bool = True) -> None:
        need(DAEMON, "monero"), need(WALLET_RPC, "monero")
        self.directory = directory
        if restored:
            with tarfile.open(snapshot()) as archive:
                archive.extractall(directory, filter="data")
        self.port, self.payer_port, self.shop_port = free_port(), free_port(), free_port()
        self._peers = free_port()
        self._node = Daemon(self._node_command(), directory / "monerod.log")
        self._payer = Daemon(self._wallet_command(self.payer_port), directory / "payer.log")
        self._shop = Daemon(self._wallet_command(self.shop_port), directory / "shop.log")
        for daemon in (self._node, self._payer, self._shop):
            daemon.start()
        self._await_node()
        self._await_wallets()
        if restored:
            self.open("payer")
            self.open("shop")

    def _node_command(self) -> list[str]:
        return [
            DAEMON, "--regtest", "--offline", "--fixed-difficulty", "1", "--keep-fakechain",
            "--data-dir", str(self.directory / "chain"), "--rpc-bind-ip", "127.0.0.1",
            "--rpc-bind-port", str(self.port), "--p2p-bind-ip", "127.0.0.1",
            "--p2p-bind-port", str(self._peers), "--no-zmq", "--no-igd", "--hide-my-port",
            "--disable-dns-checkpoints", "--check-updates", "disabled", "--rpc-ssl", "disabled",
            "--non-interactive", "--log-file", str(self.directory / "node-own.log"),
        ]  # fmt: skip

    def _wallet_command(self, port: int) -> list[str]:
        return [
            WALLET_RPC, "--daemon-address", f"127.0.0.1:{self.port}", "--trusted-daemon",
            "--wallet-dir", str(self.directory / "wallets"), "--rpc-bind-ip", "127.0.0.1",
            "--rpc-bind-port", str(port), "--disable-rpc-login", "--rpc-ssl", "disabled",
            "--daemon-ssl", "disabled", "--no-dns",
            "--shared-ringdb-dir", str(self.directory / f"ring-{port}"),
            "--log-file", str(self.directory / f"wallet-{port}.log"), "--non-interactive",
        ]  # fmt: skip

    # -- calls ----------------------------------------------------------------------------------

    def node(self, method: str, **params: Any) -> Any:
        """A JSON-RPC call of monerod."""
        return rpc(self.port, "/json_rpc", method, params, jsonrpc="2.0")

    def ask(self, path: str, **body: Any) -> Any:
        """A plain call of monerod."""
        return post(self.port, f"/{path}", body)

    def payer(self, method: str, **params: Any) -> Any:
        """A call of the paying wallet."""
        return rpc(self.payer_port, "/json_rpc", method, params, jsonrpc="2.0")

    def shop(self, method: str, **params: Any) -> Any:
        """A call of the shop's wallet."""
        return rpc(self.shop_port, "/json_rpc", method, params, jsonrpc="2.0")

    # -- wallets --------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Open a wallet in its server and let it read the chain."""
        wallet = self.payer if name == "payer" else self.shop
        wallet("open_wallet", filename=name, password="")
        wallet("refresh")

    def fresh(self) -> str:
        """A new subaddress of the shop."""
        address: str = self.shop("create_address", account_index=0)["address"]
        return address

    def payments(self, address: str) -> list[int]:
        """What each transaction that the shop counts, pooled ones too, pays the address."""
        self._shop.wait_until(lambda: self.shop("refresh"))  # -38 until it has found a new daemon
        wanted = {"in": True, "pool": True, "account_index": 0}
        found = self.shop("get_transfers", **wanted)
        entries = [*found.get("in", []), *found.get("pool", [])]
        # After `pop_blocks` the wallet also lists what it knows already as pooled, with nothing.
        paid = {e["txid"]: e["amount"] for e in entries if e["address"] == address and e["amount"]}
        return list(paid.values())

    # -- the chain ------------------------------------------------------------------------------

    def mine(self, count: int) -> None:
        """Blocks with what the pool holds, to the payer's main address."""
        self.node("generateblocks", amount_of_blocks=count, wallet_address=self._miner(),
                  starting_nonce=0)  # fmt: skip

    def pop(self, count: int) -> None:
        """Throw the newest blocks away; their transactions go back to the pool."""
        self.ask("pop_blocks", nblocks=count)

    def pool(self) -> set[str]:
        """Hashes that wait."""
        return set(self.ask("get_transaction_pool_hashes").get("tx_hashes", []))

    def height(self) -> int:
        """How many blocks there are."""
        count: int = self.node("get_block_count")["count"]
        return count

    def _miner(self) -> str:
        return (self.directory / "miner").read_text()

    # -- the processes --------------------------------------------------------------------------

    def kill_wallet(self) -> None:
        """SIGKILL of the paying wallet's server: what it had not stored is gone."""
        self._payer.kill()

    def start_wallet(self) -> None:
        """Start it again; no wallet is open in it."""
        self._payer.start()
        self._await_wallets()

    def kill_daemon(self) -> None:
        """SIGKILL of monerod."""
        self._node.kill()

    def stop_daemon(self) -> None:
        """SIGTERM: it writes what it has."""
        self._node.stop()

    def start_daemon(self) -> None:
        """Start it again, over the same chain."""
        self._node.start()
        self._await_node()

    def close(self) -> None:
        """End all processes; nothing of them is left but the directory."""
        for daemon in (self._payer, self._shop, self._node):
            daemon.kill()  # the directory goes with them; there is nothing to be kept

    def _await_node(self) -> None:
        self._node.wait_until(lambda: self.node("get_block_count"))

    def _await_wallets(self) -> None:
        for daemon, call in ((self._payer, self.payer), (self._shop, self.shop)):
            daemon.wait_until(lambda ask=call: ask("get_version"))


def cache_directory() -> Path:
    """Where snapshots are kept on this machine."""
    given = os.environ.get("TURTLES_NODES_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "turtles-nodes"


def snapshot() -> Path:
    """The snapshot of this version of monerod; mined first when there is none."""
    version = hashlib.sha256(Path(DAEMON).read_bytes()).hexdigest()[:12]
    kept = cache_directory() / f"monero-{version}-{LAYOUT}.tar.gz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="turtles-xmr-snapshot-") as name:
            _build(Path(name), kept)
    return kept


def _build(directory: Path, kept: Path) -> None:
    """Mine a chain for `payer`, and put chain and wallets into one file, at once or not at all."""
    (directory / "wallets").mkdir()
    node = Monero(directory, restored=False)
    try:
        for wallet, name in ((node.payer, "payer"), (node.shop, "shop")):
            wallet("create_wallet", filename=name, password="", language="English")
        miner = node.payer("get_address", account_index=0)["address"]
        (directory / "miner").write_text(miner)
        node.mine(BLOCKS)
        for wallet in (node.payer, node.shop):
            wallet("refresh")
            wallet("close_wallet")
        node.stop_daemon()
    finally:
        node.close()
    unfinished = kept.with_suffix(f".{os.getpid()}")
    with tarfile.open(unfinished, "w:gz") as archive:
        for part in ("chain", "wallets", "miner"):
            archive.add(directory / part, arcname=part)
    shutil.move(unfinished, kept)
