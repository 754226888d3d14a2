"""Stable Video Infinity on Wan 2.2 I2V A14B: small functions on tensors, and the engine that uses them."""
