"""Adapters of scorers to other libraries: torchmetrics, trainers, diffusers pipelines, ComfyUI."""
