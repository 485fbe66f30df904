"""ComfyUI graphs to the prompt of their samplers."""
