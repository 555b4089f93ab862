#!/bin/sh
# What the image of dataflow.Dockerfile installs; run in a clone. MODEL is a published name to bake in, or empty.
set -eu
# pip takes torch with CUDA from PyPI, so the image needs no CUDA of its own; Dataflow brings the driver.
python -m pip install --no-cache-dir --constraint constraints.txt '.[gcp]'
python -m pip check
if [ -n "${MODEL:-}" ]; then
  python -c 'import sys; from clip_transforms.clip.downloads import fetch; fetch(sys.argv[1])' "$MODEL"
fi
