"""Rendering with the workers of a Ray cluster."""
