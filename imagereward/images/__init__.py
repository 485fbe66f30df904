"""Files, arrays and PIL images to pixels, within bounds."""
