"""Personal adapters: teaching a scorer one taste from a few dozen choices"""
