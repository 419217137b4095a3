"""The page of a machine says what the class says."""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event
from engine.page import HEAD, index_page, machine_page


class Basket(Context):
    paid_cents: int = 0


class LargeBasket(Basket):
    limit_cents: int = 5


class Paid(Event, tag="paid"):
    amount_cents: int


class Order(Machine[LargeBasket]):
    """Take money once."""

    unpaid = State(initial=True, timeout=1_500, on_timeout="forget")
    done = State(final=True, invariant="is_paid")
    forgotten = State(final=True, failure=True)

    paid = unpaid.to(done, cond="enough") | unpaid.to(unpaid)
    forget = unpaid.to(forgotten)

    def enough(self, context: LargeBasket, event: Paid) -> bool:
        return event.amount_cents >= context.limit_cents

    def is_paid(self, context: LargeBasket) -> bool:
        """Nothing is given away."""
        return context.paid_cents >= 0

    @requires(paid)
    def is_money(self, event: Paid) -> bool:
        """Coins only | no buttons."""
        return event.amount_cents > 0

    @ensures(paid)
    def counted(self, new: LargeBasket) -> bool:
        return new.paid_cents >= 0

    @invariant
    def bounded(self, context: LargeBasket) -> bool:
        """Not for ever."""
        return context.paid_cents < 10**9


def test_a_page_tells_states_transitions_contracts_and_fields() -> None:
    lines = machine_page(Order).splitlines()
    assert lines[0] == HEAD
    assert "Take money once." in lines
    assert "    unpaid --> done: paid [enough]" in lines
    assert "| `unpaid` | until 1,500 ms, then `forget` |  |  |" in lines
    assert "| `done` |  | success | `is_paid` |" in lines
    assert "| `forgotten` |  | refusal or failure |  |" in lines
    assert "| `unpaid` | `paid` | `enough` | `done` | `is_money` | `counted` |" in lines
    assert "| `is_money` | requires | Coins only ∣ no buttons. |" in lines
    assert "| `bounded` | invariant | Not for ever. |" in lines
    assert "| `paid_cents` | `int` |" in lines  # an inherited field
    assert "| `limit_cents` | `int` |" in lines


def test_the_index_counts() -> None:
    assert "| [Order](order.md) | Take money once. | 3 | 3 | 4 |" in index_page([Order])
