"""Models: embedded models, loading, adapters, chat templates."""

from setbacks.models.loading import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]
