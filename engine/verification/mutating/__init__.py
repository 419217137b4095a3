"""How mutants of a machine are made; `engine.verification.mutants` is the front door."""
