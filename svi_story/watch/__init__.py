"""The live page of `svi-story watch` and its server: displays what `render/` writes."""
