"""What the outside of our machines may do; importing this registers all of it for `verify`."""

from machines.environments import (
    authentication,
    confirmation,
    discovery,
    inception,
    lives,
    payment,
    spend,
)

__all__ = ["authentication", "confirmation", "discovery", "inception", "lives", "payment", "spend"]
