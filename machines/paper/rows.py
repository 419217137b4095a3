"""The rows of the paper's table (section 4), with its counts, and the machines that are ours."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One flow: its name in the paper, how often the paper asserts, which machines we have."""

    flow: str
    title: str
    paper: int
    machines: tuple[str, ...]


ROWS = (
    Row("1", "Discovery & Self-Awareness", 130, ("Discovery",)),
    Row("3", "Crypto Payment & Pricing", 144, ("Payment",)),
    Row("3b", "Agent Gift Cards", 235, ("GiftCard", "Redemption")),
    Row("3b", "Wallet RPC Interfaces", 132, ("Spend",)),
    Row("3c", "Confirmation Polling", 240, ("Confirmation",)),
    Row("4", "HMAC-SHA256 Auth", 93, ("Authentication",)),
    Row("5", "Tool Installation", 133, ("ToolInstall",)),
    Row("6", "Code Execution", 210, ("Execution",)),
    Row("7", "Session Management", 103, ("Session",)),
    Row("8", "Service Orchestration", 95, ("Service",)),
    Row("9", "Snapshots & Restore", 73, ("Snapshot",)),
    Row("10", "Image Publishing", 91, ("Image",)),
    Row("11", "System Introspection", 173, ("Introspection",)),
    Row("12", "Trust Levels", 153, ("Trust",)),
    Row("13", "Inception", 155, ("Inception",)),
    Row("14", "Multi-Agent Compat", 164, ("Agent",)),
)
PAPER_TOTAL = 2_324
