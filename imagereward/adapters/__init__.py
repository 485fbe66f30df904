"""Adapters: small changes to a frozen scorer, ReFT and LoRA, that are put on, scaled, taken off and saved"""
