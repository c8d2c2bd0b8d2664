"""A run of a plan: its steps, what it logs and keeps, and how it ends."""
