"""Mutants that nothing notices, each with the reason why that is accepted.

`EQUIVALENT` ones cannot be noticed: the machine does the same in every case that can occur.
`SURVIVORS` could be, and it is accepted that they are not.  The names are those that
`python -m tests.verification.mutants` prints; it fails when a survivor is not listed here.
"""

from __future__ import annotations

_FAILED_INSPECTION = (
    "on_enter_unaware only fills an empty refusal, and on_inspection_failed has just written one"
)

_SAME_READ = "its reconcile is the same call again, so asking first changes nothing"

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "Discovery",
        "action-dropped inspecting --inspection_failed--> unaware (2)",
    ): _FAILED_INSPECTION,
    (
        "Discovery",
        "action-dropped sandboxed --inspection_failed--> unaware (2)",
    ): _FAILED_INSPECTION,
    (
        "Discovery",
        "action-dropped not_sandboxed --inspection_failed--> unaware (2)",
    ): _FAILED_INSPECTION,
    ("Payment", "idempotent settling (effect)"): _SAME_READ,
    ("Payment", "idempotent expired_partial (effect)"): _SAME_READ,
    ("Payment", "idempotent late (effect)"): _SAME_READ,
    (
        "Payment",
        "constant leg_deep (0 to 1)",
    ): "only for an end without a report, and became_deep takes none without one",
    (
        "Payment",
        "constant until_expiry (0 to 1)",
    ): "only for a purchase without an invoice, and settling comes after the invoice",
}

SURVIVORS: dict[tuple[str, str], str] = {
    (
        "Spend",
        "idempotent broadcasting (effect)",
    ): "hand_out looks before it sends, so performing it again is what its reconcile does, with "
    "one look more at the node; the bytes are the same and are harmless to hand out twice",
}
