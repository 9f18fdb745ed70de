"""Whole processes of a vision model, ours and ONNX Runtime: starts processes, and owns none of what they do."""
