"""Four simulated chains in SQL: blocks, transactions, outputs, mempool, reorganisations."""
