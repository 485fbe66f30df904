"""ComfyUI files: carriers, and the ways from a text to the sampler's positive side."""

import json

from comfyui_graphs import CONTROL, advanced, comfy, encode, graph, node, pair, sampler
from generation_files import MAKE, MODEL, RED, Case, exif

CONDITIONINGS = [
    Case("plain", comfy(), RED),
    Case("weights", comfy(n6=encode(f"({RED}:1.2), [shiny] embedding:x")), f"{RED}, [shiny]"),
    Case("no output node", comfy(n8=None, n9=None), RED),
    Case(
        "webp",
        exif("WEBP", {MODEL: "prompt:" + json.dumps(graph()), MAKE: "workflow:{}"}, lossless=True),
        RED,
    ),
    Case("jpeg", exif("JPEG", {MODEL: "prompt:" + json.dumps(graph()), MAKE: "workflow:{}"}), RED),
    Case("numbers as keys", comfy(n3=sampler(6, 7)), RED),
    Case(
        "nested",
        comfy(
            n3=sampler("20:6"),
            n6=None,
            **{"n20:6": encode(["20:1", 0]), "n20:1": node("PrimitiveString", value=RED)},
        ),
        RED,
    ),
    Case("primitive", comfy(n6=encode(["12", 0]), n12=node("PrimitiveStringMultiline", value=RED)), RED),
    Case("reroute", comfy(n3=sampler("12"), n12=node("Reroute", **{"": ["6", 0]})), RED),
    Case(
        "controlnet",
        comfy(n3=sampler("12"), n12=node("ControlNetApply", conditioning=["6", 0], **CONTROL)),
        RED,
    ),
    Case(
        "controlnet both",
        comfy(
            n3=node("KSampler", seed=1, positive=["12", 0], negative=["12", 1], latent_image=["5", 0]),
            n12=pair("ControlNetApplyAdvanced", **CONTROL),
        ),
        RED,
    ),
    Case(
        "sides exchanged twice",
        comfy(
            n3=node("KSampler", seed=1, positive=["12", 1], negative=["12", 0], latent_image=["5", 0]),
            n12=node("ControlNetApplyAdvanced", positive=["7", 0], negative=["6", 0], **CONTROL),
        ),
        RED,
    ),
    Case(
        "inpaint",
        comfy(
            n3=node("KSampler", seed=1, positive=["12", 0], negative=["12", 1], latent_image=["12", 2]),
            n12=pair("InpaintModelConditioning", pixels=["21", 0], mask=["21", 1], noise_mask=True),
        ),
        RED,
    ),
    Case("advanced sampler", comfy(n3=sampler(kind="KSamplerAdvanced", noise_seed=1)), RED),
    Case("custom sampler", comfy(n3=sampler(kind="SamplerCustom", noise_seed=1)), RED),
    Case(
        "flux",
        comfy(
            n6=node("CLIPTextEncodeFlux", clip_l=RED, t5xxl=RED, guidance=3.5),
            n34=node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
            **advanced(node("BasicGuider", model=["4", 0], conditioning=["34", 0])),
        ),
        RED,
    ),
    Case("cfg guider", comfy(**advanced(pair("CFGGuider", cfg=4.0, model=["4", 0]))), RED),
    Case("unknown guider", comfy(**advanced(pair("MyGuider", model=["4", 0]))), error="MyGuider"),
    Case("sdxl", comfy(n6=node("CLIPTextEncodeSDXL", text_g=RED, text_l=RED, width=1024)), RED),
    Case("sdxl half", comfy(n6=node("CLIPTextEncodeSDXL", text_g=RED, text_l="", width=1024)), RED),
    Case("sdxl two", comfy(n6=node("CLIPTextEncodeSDXL", text_g=RED, text_l="oil")), error="another text"),
    Case("sd3", comfy(n6=node("CLIPTextEncodeSD3", clip_l=RED, clip_g=RED, t5xxl=RED)), RED),
    Case("lumina", comfy(n6=node("CLIPTextEncodeLumina2", system_prompt="superior", user_prompt=RED)), RED),
    Case(
        "instruction",
        comfy(n6=encode(f"You are an assistant that draws superior images. <Prompt Start> {RED}")),
        RED,
    ),
    Case("qwen edit", comfy(n6=node("TextEncodeQwenImageEdit", prompt=RED, image=["21", 0])), RED),
    Case(
        "combine",
        comfy(
            n3=sampler("12"),
            n12=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["13", 0]),
            n13=encode("on white"),
        ),
        f"{RED}, on white",
    ),
    Case(
        "concat",
        comfy(
            n3=sampler("12"),
            n12=node("ConditioningConcat", conditioning_from=["13", 0], conditioning_to=["6", 0]),
            n13=encode("on white"),
        ),
        f"{RED}, on white",
    ),
    Case(
        "average",
        comfy(
            n3=sampler("12"),
            n12=node(
                "ConditioningAverage",
                conditioning_to=["6", 0],
                conditioning_from=["13", 0],
                conditioning_to_strength=0.5,
            ),
            n13=encode("a square"),
        ),
        error="mixes",
    ),
    Case(
        "negative in steps",
        comfy(
            n3=sampler("6", "12"),
            n12=node("ConditioningSetTimestepRange", conditioning=["7", 0], start=0.1, end=1.0),
        ),
        RED,
    ),
    Case(
        "zeroed negative",
        comfy(n3=sampler("6", "12"), n7=None, n12=node("ConditioningZeroOut", conditioning=["6", 0])),
        RED,
    ),
    Case(
        "regions",
        comfy(
            n3=sampler("12"),
            n12=node("ConditioningCombine", conditioning_1=["14", 0], conditioning_2=["15", 0]),
            n13=encode("a blue square"),
            n14=node("ConditioningSetArea", conditioning=["6", 0], x=0, y=0, width=48, height=96, strength=1),
            n15=node(
                "ConditioningSetArea", conditioning=["13", 0], x=48, y=0, width=48, height=96, strength=1
            ),
        ),
        error="parts of the picture",
    ),
    Case(
        "one text over steps",
        comfy(
            n3=sampler("12"),
            n12=node("ConditioningCombine", conditioning_1=["14", 0], conditioning_2=["15", 0]),
            n14=node("ConditioningSetTimestepRange", conditioning=["6", 0], start=0.0, end=0.5),
            n15=node("ConditioningSetTimestepRange", conditioning=["6", 0], start=0.5, end=1.0),
        ),
        RED,
    ),
    Case(
        "texts over steps",
        comfy(
            n3=sampler("12"),
            n12=node("ConditioningCombine", conditioning_1=["14", 0], conditioning_2=["15", 0]),
            n13=encode("a blue square"),
            n14=node("ConditioningSetTimestepRange", conditioning=["6", 0], start=0.0, end=0.5),
            n15=node("ConditioningSetTimestepRange", conditioning=["13", 0], start=0.5, end=1.0),
        ),
        error="the steps",
    ),
]
