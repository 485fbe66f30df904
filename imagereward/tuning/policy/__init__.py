"""The network that is trained: its trainable weights, snapshots, quantization."""
