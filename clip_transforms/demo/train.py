"""Train the demo's small CLIP on captioned scenes, from a seed: `python -m clip_transforms.demo.train`.

Training takes half an hour to an hour on two cores. The loss is CLIP's: symmetric cross-entropy over the cosines of a
batch (Radford et al. 2021, figure 3). The model code is the same as for every other checkpoint; only the sizes are
small.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.checkpoints import load, published_name
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.modified_resnet import AttentionPool2d
from clip_transforms.clip.preprocess import decode_image
from clip_transforms.clip.text_transformer import TextTransformer
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.clip.transformer import Attention, ResidualAttentionBlock
from clip_transforms.clip.vision_transformer import VisionTransformer
from clip_transforms.demo.scenes import CLASSES, Scene, draw_scene, encode_scene, random_scene

CHECKPOINT = Path(__file__).with_name("demo.safetensors")
ARCHITECTURE = Architecture(
    embed_dim=64, image_side=48, vision_layers=6, vision_width=128, patch_size=8, text_width=64, text_layers=3
)
ACTIVATION = "quick_gelu"
KINDS = 7
BATCH, PEAK, WARMUP, WEIGHT_DECAY = 256, 1e-3, 100, 0.1


def initialise(model: ClipModel) -> None:
    """Initialise a model's weights at random, as the published `CLIP.initialize_parameters` does."""
    width, layers = model.architecture.text_width, model.architecture.text_layers
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.in_proj_weight, std=module.in_proj_weight.shape[1] ** -0.5)
        elif isinstance(module, VisionTransformer):
            scale = module.class_embedding.shape[0] ** -0.5
            for parameter in (module.class_embedding, module.positional_embedding, module.proj):
                nn.init.normal_(parameter, std=scale)
        elif isinstance(module, AttentionPool2d):
            nn.init.normal_(module.positional_embedding, std=module.positional_embedding.shape[1] ** -0.5)
        elif isinstance(module, TextTransformer):
            nn.init.normal_(module.token_embedding.weight, std=0.02)
            nn.init.normal_(module.positional_embedding, std=0.01)
            nn.init.normal_(module.text_projection, std=width**-0.5)
    for block in model.text.modules():
        if isinstance(block, ResidualAttentionBlock):
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_proj.weight"), std=width**-0.5 * (2 * layers) ** -0.5)


def draw_scenes(count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Draw scenes and preprocess them; return the scenes and their pixels, uint8 [count, 3, r, r]."""
    rng = np.random.default_rng(seed)
    scenes, side = [], ARCHITECTURE.image_side
    pixels = np.empty((count, 3, side, side), np.uint8)
    for i in tqdm(range(count), desc="drawing", disable=None):
        scenes.append(random_scene(rng))
        pixels[i] = decode_image(encode_scene(draw_scene(scenes[-1], rng)), side)
    return scenes, pixels


def train(seed: int, steps: int, count: int) -> ClipModel:
    """Train a model from scratch on `count` scenes for `steps` batches."""
    torch.manual_seed(seed)
    model = ClipModel(ARCHITECTURE, ACTIVATION)
    initialise(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), eps=1e-6, weight_decay=WEIGHT_DECAY)
    scenes, pixels = draw_scenes(count, seed)
    captions = [[scene.caption(kind) for kind in range(KINDS)] for scene in scenes]
    rng = np.random.default_rng(seed + 1)
    order = np.empty(0, np.int64)
    bar = tqdm(range(steps), desc="training", disable=None)
    for step in bar:
        if len(order) < BATCH:
            order = rng.permutation(count)
        batch, order = order[:BATCH], order[BATCH:]
        tokens = default_tokenizer().tokenize([captions[i][rng.integers(KINDS)] for i in batch]).ids
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = PEAK * min(1.0, (step + 1) / WARMUP) * cosine
        images = F.normalize(model.encode_images(torch.from_numpy(pixels[batch])), dim=-1)
        texts = F.normalize(model.encode_tokens(torch.from_numpy(tokens)), dim=-1)
        logits = model.logit_scale.exp() * images @ texts.T
        targets = torch.arange(len(batch))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as published
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    zero_unmet_tokens(model, captions)
    return model.eval()


@torch.no_grad()
def zero_unmet_tokens(model: ClipModel, captions: list[list[str]]) -> None:
    """Zero the embeddings of tokens that occur in no caption: they are noise, and zeros compress well."""
    texts = sorted({caption for row in captions for caption in row})
    met = np.unique(default_tokenizer().tokenize(texts).ids)
    unmet = np.setdiff1d(np.arange(ARCHITECTURE.vocab_size), met)
    model.text.token_embedding.weight[torch.from_numpy(unmet)] = 0


def save(model: ClipModel, path: Path, provenance: dict) -> None:
    """Write fp16 safetensors in OpenAI's layout; the header holds the activation and the weights' provenance."""
    state = {published_name(name): tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"activation": model.activation, "provenance": json.dumps(provenance, sort_keys=True)}
    safetensors.torch.save_file(state, path, metadata)


def accuracy(path: Path, seed: int, count: int = 4000) -> float:
    """Return a checkpoint's zero-shot top-1 accuracy over the 48 classes, on scenes drawn from `seed`."""
    model = load(str(path), "cpu", precision="fp32")
    scenes, pixels = draw_scenes(count, seed)
    classes = model.embed_captions([f"a {name}" for name in CLASSES])
    images = torch.cat([model.embed_images(batch) for batch in np.array_split(pixels, math.ceil(count / BATCH))])
    winners = (images @ classes.T).argmax(dim=1).tolist()
    return sum(CLASSES[winner] == scene.name for winner, scene in zip(winners, scenes, strict=True)) / count


def main() -> None:
    """Train, save, and print the accuracy on unseen scenes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="file to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes, the weights and the order")
    parser.add_argument("--steps", type=int, default=2400, help="number of batches, of 256 scenes each")
    parser.add_argument("--scenes", type=int, default=30_000, help="number of scenes to draw for training")
    options = parser.parse_args()
    model = train(options.seed, options.steps, options.scenes)
    provenance = {
        "made by": "python -m clip_transforms.demo.train",
        "trained on": f"{options.scenes} scenes drawn by clip_transforms.demo.scenes",
        "seed": options.seed,
        "steps": options.steps,
        "torch": torch.__version__,
    }
    save(model, options.output, provenance)
    print(f"wrote {options.output}")
    print(f"top-1 over {len(CLASSES)} classes on 4,000 unseen scenes: {accuracy(options.output, seed=1_000_003):.2%}")


if __name__ == "__main__":
    main()
