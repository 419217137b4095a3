"""The static checks, a file for each thing they look at; `engine.verification.lint` runs them."""
