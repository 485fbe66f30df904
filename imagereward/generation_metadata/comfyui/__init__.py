"""Finds the positive prompt of ComfyUI's samplers in the graph that ComfyUI stores in images."""
