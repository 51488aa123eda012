"""Measures: arrays in, numbers out; no model, no disk."""
