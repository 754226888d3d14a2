"""The weight files: where they lie, what they hold, how they become models."""
