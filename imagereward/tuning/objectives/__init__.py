"""What is optimised: pure formulas, and the modules that apply them to a batch; one file each."""
