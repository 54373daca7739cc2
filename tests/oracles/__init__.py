"""Slow, plain numpy versions of the methods' formulas that the fast ones are compared with."""
