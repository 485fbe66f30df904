"""Rows of `imagereward models --judges` and `--templates`."""

from typing import Any


def judge_rows() -> list[dict[str, Any]]:
    """The rows of `models --judges`."""
    from imagereward.models.vlm.catalogue import JUDGES

    return [
        {
            "name": name,
            "scores": judge.scores,
            "model": judge.model,
            "GB in bfloat16": f"{judge.gigabytes:.3g}",
            "read-out": judge.readout,
            "template": judge.template or "published",
            "licence": judge.licence,
            "paper": judge.paper,
            "verified": judge.verified,
            "not verified": judge.unverified,
        }
        for name, judge in JUDGES.items()
    ]


def template_rows() -> list[dict[str, Any]]:
    """The rows of `models --templates`."""
    from imagereward.models.vlm.asking.templates import TEMPLATES

    return [
        {
            "name": name,
            "answers": ", ".join(template.answers),
            "written": ", ".join(template.grammar.fields) if template.grammar else "",
            "text": template.text,
        }
        for name, template in TEMPLATES.items()
    ]
