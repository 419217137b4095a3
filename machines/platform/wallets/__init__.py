"""The dialects in which the simulated nodes and wallets answer."""
