"""What to make: frame arithmetic, merged defaults, chains, and the content address of every segment."""
