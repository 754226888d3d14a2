"""Was it good: what a film's frames say about themselves, and a page that shows it."""
