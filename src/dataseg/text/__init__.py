"""Text embeddings: encoder, prompt templates, cache, and names that vocabularies share."""

from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.encoder import OpenClipText, TextEncoder

__all__ = ["OpenClipText", "TextEmbeddings", "TextEncoder"]
