"""Tables of ComfyUI's nodes and common custom nodes: which inputs hold text and conditionings.

A prompt that passes through a node outside these tables is unclear.
"""

# Text encoders -> their text inputs, one for each encoder of the model.
ENCODERS: dict[str, tuple[str, ...]] = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "CLIPTextEncodeSDXLRefiner": ("text",),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodeHiDream": ("clip_l", "clip_g", "t5xxl", "llama"),
    "CLIPTextEncodeHunyuanDiT": ("bert", "mt5xl"),
    "CLIPTextEncodeKandinsky5": ("clip_l", "qwen25_7b"),
    "CLIPTextEncodePixArtAlpha": ("text",),
    "CLIPTextEncodeLumina2": ("user_prompt",),  # beside it `system_prompt`, an instruction
    "TextEncodeQwenImageEdit": ("prompt",),
    "TextEncodeQwenImageEditPlus": ("prompt",),
    "TextEncodeZImageOmni": ("prompt",),
    "TextEncodeHunyuanVideo_ImageToVideo": ("prompt",),
    "BNK_CLIPTextEncodeAdvanced": ("text",),
    "BNK_CLIPTextEncodeSDXLAdvanced": ("text_g", "text_l"),
    "AdvancedCLIPTextEncode": ("text",),
    "smZ CLIPTextEncode": ("text",),
    "PCTextEncode": ("text",),
    "PCLazyTextEncode": ("text",),
}
# Encoders that read a web UI's prompt syntax (schedules, square brackets, AND).
WEB_UI_ENCODERS = {"smZ CLIPTextEncode", "PCTextEncode", "PCLazyTextEncode"}

# Nodes that load a model and encode text: (class, output) -> the text input.
ENCODED_OUTPUTS: dict[tuple[str, int], str] = {
    ("Efficient Loader", 1): "positive",
    ("Efficient Loader", 2): "negative",
    ("ImpactWildcardEncode", 2): "populated_text",
    ("Power Prompt (rgthree)", 0): "prompt",
    ("Power Prompt - Simple (rgthree)", 0): "prompt",
}

# Nodes that pass a conditioning on, for the whole image and all steps -> the input that they pass on.
SAME_CONDITIONING: dict[str, str] = {
    "FluxGuidance": "conditioning",
    "FluxDisableGuidance": "conditioning",
    "FluxKontextMultiReferenceLatentMethod": "conditioning",
    "ReferenceLatent": "conditioning",
    "ConditioningSetAreaStrength": "conditioning",
    "ControlNetApply": "conditioning",
    "CLIPTextEncodeControlnet": "conditioning",  # its own text goes to the control net alone
    "StyleModelApply": "conditioning",
    "StyleModelApplySimple": "conditioning",
    "StyleModelApplyAdvanced": "conditioning",
    "ReduxAdvanced": "conditioning",
    "unCLIPConditioning": "conditioning",
    "StableCascade_StageB_Conditioning": "conditioning",
    "HunyuanImageToVideo": "positive",
    "Reroute": "",
    "Reroute (rgthree)": "",
}
# Nodes that pass (positive, negative) on -> index of the output with the positive conditioning.
CONDITIONING_PAIRS: dict[str, int] = {
    "ControlNetApplyAdvanced": 0,
    "ControlNetApplySD3": 0,
    "ControlNetInpaintingAliMamaApply": 0,
    "ACN_AdvancedControlNetApply": 0,
    "ACN_AdvancedControlNetApply_v2": 0,
    "InpaintModelConditioning": 0,
    "InstructPixToPixConditioning": 0,
    "SD_4XUpscale_Conditioning": 0,
    "LTXVConditioning": 0,
    "LTXVImgToVideo": 0,
    "WanImageToVideo": 0,
    "WanFunControlToVideo": 0,
    "WanVaceToVideo": 0,
    "ApplyInstantID": 1,
    "ApplyInstantIDAdvanced": 1,
    "ApplyInstantIDControlNet": 0,
    "KSampler (Efficient)": 1,
    "KSampler Adv. (Efficient)": 1,
}
# Nodes that restrict a conditioning to a part of the image or of the steps.
PART_OF_PICTURE = {"ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetMask"}
PART_OF_STEPS = "ConditioningSetTimestepRange"

# Guiders -> their inputs with positive conditionings.
GUIDERS: dict[str, tuple[str, ...]] = {
    "BasicGuider": ("conditioning",),
    "CFGGuider": ("positive",),
    "DualCFGGuider": ("cond1", "cond2"),
    "PerpNegGuider": ("positive",),
}

# Text nodes that pass an input on -> that input; "" for the only one.
SAME_TEXT: dict[str, str] = {
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "PreviewAny": "source",
    "StringConstant": "string",
    "StringConstantMultiline": "string",
    "String Literal": "string",
    "CR Text": "text",
    "CR Prompt Text": "prompt",
    "ttN text": "text",
    "easy string": "value",
    "easy positive": "positive",
    "easy negative": "negative",
    "easy showAnything": "anything",
    "ShowText|pysssss": "text",
    "JWString": "text",
    "DF_Text_Box": "Text",
    "Primitive string [Crystools]": "string",
    "Primitive string multiline [Crystools]": "string",
    "Reroute": "",
    "Reroute (rgthree)": "",
}
# Text nodes that join texts -> (inputs in order, the input with the separator).
JOINED_TEXTS: dict[str, tuple[tuple[str, ...], str]] = {
    "StringConcatenate": (("string_a", "string_b"), "delimiter"),
    "JoinStrings": (("string1", "string2"), "delimiter"),
    "CR Text Concatenate": (("text1", "text2"), "separator"),
    "easy promptConcat": (("prompt1", "prompt2"), "separator"),
    "ttN concat": (("text1", "text2", "text3"), "delimiter"),
}
# Text nodes that replace -> the inputs with the text, the searched text and its replacement.
REPLACED_TEXTS: dict[str, tuple[str, str, str]] = {
    "StringReplace": ("string", "find", "replace"),
    "Text Find and Replace": ("text", "find", "replace"),
}
# Wildcard nodes -> the input with the text after wildcards were filled in.
FILLED_TEXTS: dict[str, str] = {
    "ImpactWildcardProcessor": "populated_text",
    "ImpactWildcardEncode": "populated_text",
}
# Switches -> (the input with the chosen number, pattern of the inputs' names).
SWITCHES: dict[str, tuple[str, str]] = {
    "ImpactSwitch": ("select", "input{}"),
    "CR Text Input Switch": ("Input", "text{}"),
    "CR Conditioning Input Switch": ("Input", "conditioning{}"),
}

# Parts of names of nodes that redraw parts of the finished image with a text of their own.
LOCAL_PASSES = ("detailer", "ultimatesdupscale")
# Nodes that ComfyUI does not run unless a later node uses their output.
NEVER_LAST = {
    "KSampler",
    "KSamplerAdvanced",
    "SamplerCustom",
    "SamplerCustomAdvanced",
    "VAEDecode",
    "VAEDecodeTiled",
    "VAEEncode",
    "LatentUpscale",
    "LatentUpscaleBy",
}
