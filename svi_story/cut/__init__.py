"""From segments to the film: edit list, pieces that are encoded once and joined, sound, captions."""
