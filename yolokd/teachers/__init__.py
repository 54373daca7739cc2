"""The frozen teacher: its kinds, what it sees, what is read of it."""
