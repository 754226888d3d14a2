"""Images and text on images: open safely, fit, draw text in any script."""
