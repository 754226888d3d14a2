"""Audio files from strangers, opened safely, as 48 kHz stereo."""
