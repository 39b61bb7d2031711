"""Steps of the engine beside their limit, the same matrix products alone, and beside transformers."""
