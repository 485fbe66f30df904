"""ComfyUI files: the ways texts are made, several samplers, and graphs that are none."""

import json

from comfyui_graphs import comfy, encode, graph, node, sampler
from generation_files import A1111, NEGATIVE, RED, Case, png

TEXTS_AND_SAMPLERS = [
    Case(
        "concatenated strings",
        comfy(
            n6=encode(["12", 0]),
            n12=node("StringConcatenate", string_a=["13", 0], string_b="circle", delimiter=" "),
            n13=node("StringReplace", string="a blue", find="blue", replace="red"),
        ),
        RED,
    ),
    Case(
        "was suite",
        comfy(
            n6=encode(["12", 0]),
            n12=node(
                "Text Concatenate",
                delimiter=", ",
                clean_whitespace="true",
                text_a=["13", 0],
                text_b="on white ",
            ),
            n13=node("Text Multiline", text=f"# a comment\n{RED}"),
        ),
        f"{RED}, on white",
    ),
    Case(
        "wildcard",
        comfy(
            n6=encode(["12", 0]),
            n12=node("ImpactWildcardProcessor", wildcard_text="a {red|blue} circle", populated_text=RED),
        ),
        RED,
    ),
    Case(
        "wildcard not filled in",
        comfy(
            n6=encode(["12", 0]),
            n12=node("ImpactWildcardProcessor", wildcard_text="a {red|blue} circle", populated_text=""),
        ),
        error="wildcards",
    ),
    Case(
        "switch",
        comfy(
            n6=encode(["12", 0]),
            n12=node("ImpactSwitch", select=2, input1="a blue circle", input2=["13", 0]),
            n13=node("PrimitiveString", value=RED),
        ),
        RED,
    ),
    Case(
        "efficient",
        comfy(
            n3=node(
                "KSampler (Efficient)", seed=1, positive=["12", 1], negative=["12", 2], latent_image=["12", 3]
            ),
            n12=node("Efficient Loader", positive=RED, negative=NEGATIVE),
        ),
        RED,
    ),
    Case(
        "base and refiner",
        comfy(
            n8=node("VAEDecode", samples=["12", 0]),
            n12=node(
                "KSamplerAdvanced", noise_seed=1, positive=["13", 0], negative=["7", 0], latent_image=["3", 0]
            ),
            n13=node("CLIPTextEncodeSDXLRefiner", ascore=6.0, text=RED),
        ),
        RED,
    ),
    Case(
        "second pass of another text",
        comfy(
            n8=node("VAEDecode", samples=["12", 0]),
            n12=node("KSampler", seed=1, positive=["13", 0], negative=["7", 0], latent_image=["3", 0]),
            n13=encode("a detailed face"),
        ),
        error="different texts",
    ),
    Case(
        "face detailer",
        comfy(
            n9=node("SaveImage", images=["12", 0]),
            n12=node("FaceDetailer", image=["8", 0], seed=1, positive=["13", 0], negative=["7", 0]),
            n13=encode("a detailed face"),
        ),
        RED,
    ),
    Case(
        "face detailer alone",
        comfy(
            n3=None,
            n8=node("LoadImage", image="x.png"),
            n9=node("SaveImage", images=["12", 0]),
            n12=node("FaceDetailer", image=["8", 0], seed=1, positive=["13", 0], negative=["7", 0]),
            n13=encode("a detailed face"),
        ),
        error="FaceDetailer",
    ),
    Case(
        "language model",
        comfy(
            n6=encode(["12", 0]),
            n12=node("OllamaGenerate", prompt="write a prompt", system="you are a helpful artist"),
        ),
        error="OllamaGenerate",
    ),
    Case(
        "language model shown",
        comfy(
            n6=encode(["13", 0]),
            n12=node("Qwen3_LLM", prompt="describe a circle"),
            n13=node("ShowText|pysssss", text=["12", 0], text_0="describe a circle"),
        ),
        error="Qwen3_LLM",
    ),
    Case(
        "unused text",
        comfy(n1=node("PrimitiveString", value="a square"), n2=encode("a square")),
        RED,
    ),
    Case(
        "text only on the negative side",
        comfy(n3=sampler("12"), n12=node("T5Mystery", cond=["6", 0]), n7=node("CLIPTextEncode", text="text")),
        error="T5Mystery",
    ),
    Case(
        "positive from a node called negative",
        comfy(n6=node("easy negative", negative=RED), n3=sampler("12"), n12=encode(["6", 0])),
        RED,
    ),
    Case(
        "sampler that is not run",
        comfy(n12=sampler("13"), n13=encode("a square"), n14=node("VAEDecode", samples=["12", 0])),
        RED,
    ),
    Case(
        "two pictures",
        comfy(
            n12=sampler("13"),
            n13=encode("a square"),
            n14=node("VAEDecode", samples=["12", 0]),
            n15=node("PreviewImage", images=["14", 0]),
        ),
        error="different texts",
    ),
    Case("no sampler", comfy(n3=None), error="no sampler"),
    Case("pipe sampler", comfy(n3=node("easy kSampler", pipe=["4", 0])), error="unknown kind"),
    Case("missing node", comfy(n6=None), error="node 6, which is not in it"),
    Case("circle", comfy(n6=node("FluxGuidance", conditioning=["6", 0])), error="circle"),
    Case("number for text", comfy(n6=encode(7)), error="int where a link"),
    Case("empty text", comfy(n6=encode(" ")), error="is empty"),
    Case(
        "inputs of wrong types",
        png({"prompt": json.dumps({"3": {"class_type": 4, "inputs": []}})}),
        error="no sampler",
    ),
    Case(
        "only the workflow",
        png({"workflow": json.dumps({"nodes": [{"type": "KSampler"}]})}),
        error="workflow",
    ),
    Case(
        "no graph",
        png({"prompt": json.dumps({"1": {"inputs": {"positive": ["1", 0]}}})}),
        error="unknown layout",
    ),
    Case("with parameters", png({"prompt": json.dumps(graph()), "parameters": A1111}), RED),
    Case(
        "with other parameters",
        png({"prompt": json.dumps(graph()), "parameters": A1111.replace("red", "blue")}),
        error="different prompts",
    ),
    Case(
        "image saver",
        png({"prompt": json.dumps(graph(n6=encode(["12", 0]), n12=node("LLM"))), "parameters": A1111}),
        RED,
    ),
]
