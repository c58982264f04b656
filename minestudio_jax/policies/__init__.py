"""Policies as pure functions over a parameter tree; Flax modules stay inside this package."""
