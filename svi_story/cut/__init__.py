"""The film: an edit list in integer frames, encoded piece by piece and joined."""
