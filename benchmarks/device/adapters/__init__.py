"""Whole processes of a language model with LoRA adapters, ours and llama.cpp."""
