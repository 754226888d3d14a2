"""Images, text and audio: untrusted files read safely, text drawn in any script."""
