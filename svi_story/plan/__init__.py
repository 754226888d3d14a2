"""What to render: one resolved model of the film, cache keys, lints, differences to the previous film."""
