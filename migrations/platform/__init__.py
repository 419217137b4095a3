"""Schema of the embedded platform's own SQLite file."""
