"""What is already rendered: segments and encoded pieces by content address, and work in progress."""
