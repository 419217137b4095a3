"""Schema of the engine's store."""
