"""Reads the user comment of XMP, into which Draw Things writes JSON.

XMP's description is not read, because Draw Things writes the negative prompt there as well.
"""

from xml.etree import ElementTree

from imagereward.generation_metadata.entries import MOST_TEXT, Entry

FIELDS = {"{http://ns.adobe.com/exif/1.0/}UserComment": "UserComment"}
ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


def read_xmp(data: bytes | str) -> list[Entry]:
    """The user comments of an XMP packet; empty if the packet is not XML or not safe to parse."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    text = text.strip("\0 \t\r\n\ufeff")
    if len(text) > MOST_TEXT:
        return [Entry("", "", "XMP", f"the packet has more than {MOST_TEXT} characters")]
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # XMP has no entities, which can expand without bound
        return []
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return []
    found = []
    for element in root.iter():
        if element.tag in FIELDS:
            item = next(element.iter(ITEM), element)
            if value := (item.text or "").strip():
                found.append(Entry(FIELDS[element.tag], value, "XMP"))
        for name, value in element.attrib.items():
            if name in FIELDS and value.strip():
                found.append(Entry(FIELDS[name], value.strip(), "XMP"))
    return found
