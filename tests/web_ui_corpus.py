"""Files as web UIs and scripts write them: infotext, JSON, EXIF, XMP.

Layouts follow the programs' own sources and public examples of their files. The positive prompt is RED
unless a case says otherwise; words of negative prompts are in no expected prompt.
"""

import json

from generation_files import (
    A1111,
    DESCRIPTION,
    MAKE,
    MODEL,
    NEGATIVE,
    RED,
    SETTINGS,
    USER_COMMENT,
    Case,
    exif,
    picture,
    png,
    unicode_comment,
    xmp,
)

SWARM = {
    "sui_image_params": {"prompt": RED, "negativeprompt": NEGATIVE, "model": "m", "seed": 1, "steps": 20},
    "sui_extra_data": {"date": "2026-01-01", "original_prompt": "a <random:red,blue> circle"},
}
FOOOCUS = {
    "prompt": RED,
    "negative_prompt": NEGATIVE,
    "full_prompt": [f"cinematic still {RED} . emotional", RED],
    "full_negative_prompt": [NEGATIVE],
    "styles": "['Fooocus V2']",
    "performance": "Speed",
    "base_model": "juggernaut",
    "steps": 30,
    "version": "Fooocus v2.5.5",
}
NOVELAI = {"prompt": f"{{{{{RED}}}}}, [shiny]", "steps": 28, "uc": NEGATIVE, "sampler": "k_euler"}
NOVELAI4 = {
    "prompt": "two circles",
    "uc": NEGATIVE,
    "v4_prompt": {
        "caption": {
            "base_caption": "two circles",
            "char_captions": [
                {"char_caption": "1.2::red circle::", "centers": [{"x": 0.3, "y": 0.5}]},
                {"char_caption": "blue circle", "centers": [{"x": 0.7, "y": 0.5}]},
            ],
        },
        "use_coords": True,
    },
}
INVOKEAI = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a (red)1.3 circle++",
    "negative_prompt": NEGATIVE,
    "positive_style_prompt": "",
    "app_version": "5.4.3",
    "regions": [],
}
DRAW_THINGS = {"c": RED, "uc": NEGATIVE, "model": "x_f16.ckpt", "sampler": "DPM++ 2M Karras", "seed": 1}
DREAM = f'"{RED} [{NEGATIVE}]" -s 50 -S 3627653328 -W 512 -H 512 -C 7.5 -A k_lms'
WEB_UIS = [
    Case("a1111 png", png({"parameters": A1111}), RED),
    Case("a1111 zTXt", png({"parameters": A1111}, "zTXt"), RED),
    Case("a1111 iTXt", png({"parameters": A1111.replace(RED, "赤い円, café")}, "iTXt"), "赤い円, café"),
    Case("a1111 jpeg", exif("JPEG", {USER_COMMENT: unicode_comment(A1111)}), RED),
    Case("a1111 webp", exif("WEBP", {USER_COMMENT: unicode_comment(A1111)}), RED),
    Case("a1111 little", exif("JPEG", {USER_COMMENT: unicode_comment(A1111, "utf-16-le")}), RED),
    Case("a1111 order mark", exif("JPEG", {USER_COMMENT: unicode_comment(A1111, "utf-16")}), RED),
    Case("a1111 ascii", exif("JPEG", {USER_COMMENT: b"ASCII\0\0\0" + A1111.encode()}), RED),
    Case(
        "a1111 japanese",
        exif("JPEG", {USER_COMMENT: unicode_comment("赤い円の絵、白い背景")}),
        error="both orders",
    ),
    Case("a1111 chinese", exif("JPEG", {USER_COMMENT: unicode_comment("一只猫, 4k")}), "一只猫, 4k"),
    Case(
        "a1111 japanese little",
        exif("JPEG", {USER_COMMENT: unicode_comment(A1111.replace(RED, "赤い円の絵一"), "utf-16-le")}),
        "赤い円の絵一",
    ),
    Case("a1111 gif", lambda path: picture().save(path, "GIF", comment=A1111.encode()), RED),
    Case("a1111 two lines", png({"parameters": f"{RED},\non white\n{SETTINGS}"}), f"{RED},\non white"),
    Case("a1111 no positive", png({"parameters": f"Negative prompt: {RED}\n{SETTINGS}"}), error="is empty"),
    Case("a1111 hires", png({"parameters": A1111 + ", Hires prompt: a face, Hires upscale: 2"}), RED),
    Case(
        "a1111 adetailer",
        png({"parameters": f'{A1111}, ADetailer prompt: "a face, detailed", ADetailer model: face.pt'}),
        RED,
    ),
    Case("a1111 wildcards", png({"parameters": f'{A1111}\nTemplate: "a {{red|blue}} circle"'}), RED),
    Case(
        "forge",
        png({"parameters": f"{RED}\n{SETTINGS}, Distilled CFG Scale: 3.5, Version: f2.0.1v1.10.1"}),
        RED,
    ),
    Case(
        "sdnext",
        png({"parameters": f"Prompt: {RED}\nNegative prompt: {NEGATIVE}\nSteps: 20, App: SD.Next"}),
        RED,
    ),
    Case("civitai line", png({"parameters": A1111.replace("\n", " ")}), RED),
    Case(
        "syntax",
        png({"parameters": f"({RED}:1.3) <lora:toon:0.8>, BREAK shiny\nNegative prompt: x\n{SETTINGS}"}),
        f"{RED}, shiny",
    ),
    Case("damaged json", png({"parameters": '{"prompt": "a red ci'}), error="damaged"),
    Case("swarmui png", png({"parameters": json.dumps(SWARM, indent=2)}), RED),
    Case("swarmui jpeg", exif("JPEG", {USER_COMMENT: unicode_comment(json.dumps(SWARM))}), RED),
    Case("swarmui old", exif("JPEG", {MODEL: json.dumps(SWARM)}), RED),
    Case(
        "swarmui segment",
        png(
            {
                "parameters": json.dumps(
                    {"sui_image_params": {"prompt": f"{RED}<lora:a> <segment:face> a face"}}
                )
            }
        ),
        RED,
    ),
    Case(
        "swarmui regions",
        png(
            {"parameters": json.dumps({"sui_image_params": {"prompt": f"{RED} <region:0,0,0.5,1> a square"}})}
        ),
        error="regions",
    ),
    Case("fooocus", png({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}), RED),
    Case(
        "fooocus a1111",
        png(
            {
                "parameters": f"cinematic still {RED}, {RED}\nNegative prompt: {NEGATIVE}\n"
                f"Steps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 1, Raw prompt: {RED}, "
                f'Raw negative prompt: "{NEGATIVE}", Version: Fooocus v2.5.5',
                "fooocus_scheme": "a1111",
            }
        ),
        RED,
    ),
    Case("fooocus jpeg", exif("JPEG", {USER_COMMENT: json.dumps(FOOOCUS).encode(), 0x927C: "fooocus"}), RED),
    Case("fooocus mre", png({"Comment": json.dumps(FOOOCUS)}), RED),
    Case("easy diffusion", png({"prompt": RED, "negative_prompt": NEGATIVE, "seed": "1"}), RED),
    Case("easy diffusion old", png({"Prompt": RED, "Negative Prompt": NEGATIVE, "Seed": "1"}), RED),
    Case("invokeai", png({"invokeai_metadata": json.dumps(INVOKEAI), "invokeai_graph": "{}"}), RED),
    Case(
        "invokeai regions",
        png({"invokeai_metadata": json.dumps(INVOKEAI | {"regions": [{"positivePrompt": "a face"}]})}),
        error="regions",
    ),
    Case(
        "invokeai 2",
        png(
            {
                "Dream": DREAM,
                "sd-metadata": json.dumps(
                    {"image": {"prompt": [{"prompt": f"{RED} [{NEGATIVE}]", "weight": 1.0}]}}
                ),
            }
        ),
        RED,
    ),
    Case(
        "invokeai 2 blend",
        png({"sd-metadata": json.dumps({"image": {"prompt": [{"prompt": RED}, {"prompt": "a square"}]}})}),
        error="blended",
    ),
    Case("invokeai 1", png({"Dream": DREAM}), RED),
    Case(
        "novelai",
        png({"Software": "NovelAI", "Description": NOVELAI["prompt"], "Comment": json.dumps(NOVELAI)}),
        f"{RED}, shiny",
    ),
    Case(
        "novelai old",
        png(
            {
                "Title": "AI generated image",
                "Description": f"{{{RED}}}",
                "Software": "NovelAI",
                "Comment": json.dumps({"steps": 28, "uc": NEGATIVE}),
            }
        ),
        RED,
    ),
    Case(
        "novelai 4",
        png({"Software": "NovelAI", "Description": "two circles", "Comment": json.dumps(NOVELAI4)}),
        "two circles, red circle, blue circle",
    ),
    Case(
        "draw things png",
        png({"XML:com.adobe.xmp": xmp(json.dumps(DRAW_THINGS), f"{RED}&#xA;-{NEGATIVE}&#xA;Steps: 20")}),
        RED,
    ),
    Case(
        "draw things description",
        exif("JPEG", {DESCRIPTION: f"{RED}\n-{NEGATIVE}\nSteps: 20, Sampler: x"}),
        error="Draw Things",
    ),
    Case("draw things xmp", png({"XML:com.adobe.xmp": xmp(json.dumps(DRAW_THINGS))}, "iTXt"), RED),
    Case(
        "draw things jpeg",
        exif("JPEG", {USER_COMMENT: b"ASCII\0\0\0" + json.dumps(DRAW_THINGS).encode()}),
        RED,
    ),
    Case(
        "draw things webp",
        lambda path: picture().save(path, "WEBP", xmp=xmp(json.dumps(DRAW_THINGS)).encode()),
        RED,
    ),
    Case("diffusers prompt", png({"prompt": f"{RED} (on white)", "seed": "1"}), f"{RED} (on white)"),
    Case("diffusers parameters", png({"parameters": RED}), RED),
    Case("diffusers json", png({"prompt": json.dumps({"prompt": RED, "negative_prompt": NEGATIVE})}), RED),
    Case("diffusers comment", exif("JPEG", {USER_COMMENT: b"ASCII\0\0\0" + RED.encode()}), RED),
    Case(
        "camera",
        exif("JPEG", {MAKE: "NIKON", USER_COMMENT: b"ASCII\0\0\0" + RED.encode()}),
        error="no prompt",
    ),
    Case("screenshot", exif("JPEG", {USER_COMMENT: b"ASCII\0\0\0Screenshot"}), error="no prompt"),
    Case(
        "editor",
        exif("JPEG", {0x0131: "GIMP 2.10.36", USER_COMMENT: b"ASCII\0\0\0a comment"}),
        error="no prompt",
    ),
    Case("description", exif("JPEG", {DESCRIPTION: "OLYMPUS DIGITAL CAMERA"}), error="no prompt"),
    Case("gimp", lambda path: picture().save(path, "JPEG", comment=b"Created with GIMP"), error="no prompt"),
    Case("nothing", png({"Software": "x"}), error="no prompt"),
    Case(
        "two parameters",
        png([("parameters", A1111), ("parameters", A1111.replace("red", "blue"))]),
        error="different prompts",
    ),
]
