"""Graphs of ComfyUI's nodes, and PNG files that hold them."""

import json

from generation_files import NEGATIVE, RED, png


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": "Negative"}}  # titles mean nothing


def encode(text) -> dict:
    return node("CLIPTextEncode", text=text, clip=["4", 1])


def sampler(positive="6", negative="7", kind="KSampler", **more) -> dict:
    links = {"model": ["4", 0], "positive": [positive, 0], "negative": [negative, 0]}
    return node(kind, seed=1, steps=20, cfg=7.0, latent_image=["5", 0], **links, **more)


def graph(**nodes) -> dict:
    """A usual graph; `n12=...` adds or replaces node 12, and None removes it."""
    usual = {
        "3": sampler(),
        "4": node("CheckpointLoaderSimple", ckpt_name="x.safetensors"),
        "5": node("EmptyLatentImage", width=96, height=96, batch_size=1),
        "6": encode(RED),
        "7": encode(NEGATIVE),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }
    usual |= {name.lstrip("n"): each for name, each in nodes.items()}
    return {key: each for key, each in usual.items() if each is not None}


def comfy(**nodes):
    return png({"prompt": json.dumps(graph(**nodes)), "workflow": '{"nodes": []}'})


def pair(kind: str, **more) -> dict:
    return node(kind, positive=["6", 0], negative=["7", 0], **more)


CONTROL = {"strength": 1.0, "control_net": ["20", 0], "image": ["21", 0]}
CUSTOM = {"noise": ["30", 0], "guider": ["31", 0], "sampler": ["32", 0], "sigmas": ["33", 0]}


def advanced(guider: dict) -> dict:
    """Nodes of SamplerCustomAdvanced with a guider."""
    return {
        "n3": node("SamplerCustomAdvanced", latent_image=["5", 0], **CUSTOM),
        "n30": node("RandomNoise", noise_seed=1),
        "n31": guider,
        "n32": node("KSamplerSelect", sampler_name="euler"),
        "n33": node("BasicScheduler", scheduler="simple", steps=20, denoise=1.0, model=["4", 0]),
    }
