"""What the engine and the compiler need of transformers: configurations, tokenizers, images, empty modules."""
