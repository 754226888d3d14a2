"""One zip in and out: a board with everything it names, and its finished segments."""
