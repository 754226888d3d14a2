"""Quality: measures of a film's frames, findings, the HTML page, and contact sheets."""
