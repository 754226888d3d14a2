"""What the author wrote: a storyboard file, checked and typed, with the line of every value."""
