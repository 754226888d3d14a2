"""svi-story: a YAML storyboard goes in, a long, consistent AI film comes out."""

__version__ = "0.1.0"
