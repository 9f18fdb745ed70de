"""The dense model: loading it, which of its weights are paged, and masks laid over them. Torch."""
