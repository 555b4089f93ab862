"""Draw captioned scenes from a seed, with Pillow: one coloured shape on a plain background."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
COLORS = {
    "red": (220, 30, 40),
    "green": (30, 160, 60),
    "blue": (50, 110, 255),
    "yellow": (240, 215, 30),
    "purple": (155, 50, 185),
    "white": (250, 250, 250),
}
BACKGROUNDS = {
    "black": (15, 15, 15),
    "gray": (95, 95, 100),
    "pink": (240, 140, 170),
    "brown": (95, 60, 35),
    "teal": (0, 105, 110),
    "navy": (20, 25, 70),
}
SIZES = {"small": (0.32, 0.38), "big": (0.46, 0.54)}  # the range of the diameter, as a fraction of the side
PLACES = {
    "top left": (0.32, 0.32),
    "top right": (0.68, 0.32),
    "center": (0.5, 0.5),
    "bottom left": (0.32, 0.68),
    "bottom right": (0.68, 0.68),
}
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)  # 48

_CAPTIONS = (
    "a {color} {shape}",
    "a {size} {color} {shape}",
    "a {color} {shape} on {background}",
    "a {color} {shape} at the {place}",
    "a {size} {color} {shape} at the {place} on {background}",
    "a photo of a {color} {shape}.",
    "a photo of a {shape}.",
)
_SUPERSAMPLING = 3  # scenes are drawn larger and then scaled down, since Pillow draws without anti-aliasing


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene: words for its caption, and numbers for its drawing."""

    shape: str
    color: str
    size: str
    place: str
    background: str
    diameter: float
    center: tuple[float, float]
    tilt: float
    noise: float

    @property
    def name(self) -> str:
        """The scene's class, one of CLASSES."""
        return f"{self.color} {self.shape}"

    def caption(self, kind: int) -> str:
        """Return one of seven kinds of caption, from "a red star" to a full description."""
        words = {field: getattr(self, field) for field in ("shape", "color", "size", "place", "background")}
        return _CAPTIONS[kind % len(_CAPTIONS)].format(**words)


def random_scene(rng: np.random.Generator) -> Scene:
    """Choose a scene at random; all words of a kind are equally likely."""
    size, place = (str(rng.choice(list(words))) for words in (SIZES, PLACES))
    x, y = PLACES[place]
    return Scene(
        shape=str(rng.choice(SHAPES)),
        color=str(rng.choice(list(COLORS))),
        size=size,
        place=place,
        background=str(rng.choice(list(BACKGROUNDS))),
        diameter=float(rng.uniform(*SIZES[size])),
        center=(x + float(rng.uniform(-0.04, 0.04)), y + float(rng.uniform(-0.04, 0.04))),
        tilt=float(rng.uniform(-15, 15)),
        noise=float(rng.uniform(0, 6)),
    )


def draw_scene(scene: Scene, rng: np.random.Generator, side: int = 96) -> Image.Image:
    """Draw a scene.

    Args:
        scene: the scene.
        rng: the source of the noise.
        side: the side of the image in pixels.
    Returns:
        An RGB image of `side` × `side` pixels.
    """
    large = side * _SUPERSAMPLING
    background = BACKGROUNDS[scene.background]
    mask = Image.new("L", (large, large), 0)
    _draw_shape(ImageDraw.Draw(mask), scene, large)
    image = Image.new("RGB", (large, large), background)
    image.paste(COLORS[scene.color], mask=mask)
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32)
    pixels = pixels + rng.normal(0, 1, pixels.shape).astype(np.float32) * scene.noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def encode_scene(image: Image.Image) -> bytes:
    """Encode a drawn scene as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _draw_shape(draw: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    x, y = (side * c for c in scene.center)
    radius = side * scene.diameter / 2

    def place(points):
        """Tilt, scale and move points given in a plane where the shape's radius is 1 and y points down."""
        cos, sin = math.cos(math.radians(scene.tilt)), math.sin(math.radians(scene.tilt))
        return [(x + radius * (px * cos - py * sin), y + radius * (px * sin + py * cos)) for px, py in points]

    def disc(center, r, fill):
        cx, cy = place([center])[0]
        draw.ellipse((cx - r * radius, cy - r * radius, cx + r * radius, cy + r * radius), fill=fill)

    if scene.shape == "circle":
        disc((0, 0), 1.0, 255)
    elif scene.shape == "ring":
        disc((0, 0), 1.0, 255)
        disc((0, 0), 0.55, 0)
    elif scene.shape == "moon":
        disc((0, 0), 1.0, 255)
        disc((0.55, 0), 0.8, 0)
    else:
        draw.polygon(place(_outline(scene.shape)), fill=255)


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [_polar(1.0, angle) for angle in (-90, 30, 150)]
    if shape == "star":
        return [_polar(1.0 if i % 2 == 0 else 0.4, -90 + 36 * i) for i in range(10)]
    if shape == "cross":
        a, b = 0.3, 0.95
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    # A heart, by a well-known formula: x = sin³ t, y = (13 cos t − 5 cos 2t − 2 cos 3t − cos 4t) / 17.
    curve = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((math.sin(t) ** 3, -y / 17))
    return curve


def _polar(r: float, degrees: float) -> tuple[float, float]:
    return r * math.cos(math.radians(degrees)), r * math.sin(math.radians(degrees))
