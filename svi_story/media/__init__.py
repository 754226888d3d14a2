"""Images, text and audio: files from strangers read safely, text drawn in any script."""
