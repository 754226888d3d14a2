"""Who makes it: one contract, several engines."""
