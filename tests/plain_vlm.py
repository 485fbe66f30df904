"""Answers of vision-language models by transformers' own code alone: one image, one prompt, no padding."""

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


class PlainVLM:
    """A model and its processor, asked one conversation at a time."""

    def __init__(self, directory):
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(directory)

    def inputs(self, text, *images):
        """The processor's inputs of a user turn; `text` has {image} where the images belong."""
        parts = text.split("{image}")
        content = [{"type": "text", "text": parts[0]}] if parts[0] else []
        for image, part in zip(images, parts[1:], strict=True):
            content += [{"type": "image", "image": image}, {"type": "text", "text": part}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )

    @torch.no_grad()
    def logits(self, text, *images):
        """Logits [V] of the first token of the answer."""
        return self.model(**self.inputs(text, *images)).logits[0, -1]

    def probability(self, word, text, *images):
        """The probability that the answer begins with `word`, which is one token."""
        (token,) = self.processor.tokenizer(word, add_special_tokens=False).input_ids
        return self.logits(text, *images).double().softmax(-1)[token].item()

    @torch.no_grad()
    def written(self, text, image, tokens):
        """What the model writes, by transformers' greedy `generate`."""
        inputs = self.inputs(text, image)
        ids = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return self.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
