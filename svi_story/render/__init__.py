"""The story of the program: one film, or a folder of them."""
