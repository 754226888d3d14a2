"""What is made already: finished segments by content address, and work under way."""
