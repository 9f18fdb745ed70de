"""The dense model: loading it, its parameters by name, and which of its weights are paged. Torch."""
