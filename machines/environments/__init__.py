"""What the outside of our machines may do; importing this registers all of it for `verify`."""

from machines.environments import (
    agent,
    authentication,
    confirmation,
    discovery,
    execution,
    gift_card,
    image,
    inception,
    introspection,
    lives,
    payment,
    service,
    snapshot,
    spend,
    tool_install,
    trust,
)

__all__ = [
    "agent",
    "authentication",
    "confirmation",
    "discovery",
    "execution",
    "gift_card",
    "image",
    "inception",
    "introspection",
    "lives",
    "payment",
    "service",
    "snapshot",
    "spend",
    "tool_install",
    "trust",
]
