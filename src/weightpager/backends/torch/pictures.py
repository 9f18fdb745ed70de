"""How a torch module reads pictures among its words: their features, and these in the place of placeholders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weightpager.backends.torch.architecture import packs_tiles, takes_tiles
from weightpager.readers.patch_processor import Grid


def features_of(module: Any, pixels: Tensor, grid: Grid | None = None) -> Tensor:
    """Pictures' features, [pictures, tokens, width], of pixels [pictures, channels, height, width]; or tiles'.

    Of a run of patches, of so many rows and columns of places, one picture's: [tokens, width], of [places, patches of a
    place, numbers of a patch].
    """
    if takes_tiles(module.config):  # its own function would take a tile of zeros for padding
        base = module.base_model
        tiles: Tensor = base.connector(base.vision_model(pixels, return_dict=True).last_hidden_state)
        return tiles
    if packs_tiles(module.config):
        return projected(module, pixels)
    if grid is None:
        return torch.stack(list(module.get_image_features(pixel_values=pixels).pooler_output))
    merge = module.config.vision_config.spatial_merge_size
    sides = torch.tensor([(1, grid[0] * merge, grid[1] * merge)], device=pixels.device)
    found: Tensor = module.get_image_features(pixel_values=pixels.flatten(0, 1), image_grid_thw=sides).pooler_output[0]
    return found


def projected(module: Any, pixels: Tensor) -> Tensor:
    """What LLaVA's connector makes of pictures or tiles; of tiles that are put together, with an end of rows behind."""
    base, config = module.base_model, module.config
    states = base.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    first = 1 if config.vision_feature_select_strategy == "default" else 0  # behind the token of the class
    found: Tensor = base.multi_modal_projector(torch.cat([each[:, first:] for each in chosen], -1))
    if not packs_tiles(config):
        return found
    return torch.cat([found, base.image_newline.expand(found.shape[0], 1, -1)], 1)


def window_of(vision: Any) -> int:
    """Places of a side of the windows in which most layers of a tower look, by its configuration; 0 where none do."""
    size = getattr(vision, "window_size", None)
    return 0 if size is None else int(size // vision.spatial_merge_size // vision.patch_size)


def with_features(module: Any, ids: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """What the language model reads, [texts, tokens, width].

    Args:
        module: the task's.
        ids: int64 [texts, tokens].
        features: [rows, width], one row at least.
        index: int64 [texts, tokens], the row that stands in a token's place; negative where its embedding does.
    """
    words: Tensor = module.get_input_embeddings()(ids)
    rows = features.to(words.dtype)[index.masked_fill(index < 0, 0)]
    return torch.where((index >= 0)[..., None], rows, words)
