"""Small datasets in the official layouts, rendered on demand: mini-ADE, mini-COCO, mini-Objects365, mini-Open."""

from data_modules.mini.settings import Difficulty
from data_modules.mini.suite import GENERATOR_VERSION, MiniSpec, ensure, ensure_wanted, generate, is_complete

__all__ = ["GENERATOR_VERSION", "Difficulty", "MiniSpec", "ensure", "ensure_wanted", "generate", "is_complete"]
