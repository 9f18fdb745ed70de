"""Speed of the paged kernels."""
