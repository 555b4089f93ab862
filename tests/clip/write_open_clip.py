"""Let open_clip itself write small models as it does for its hub, and embed with them: `… FOLDER …`.

A program of its own, since open_clip imports torchvision, which cannot be had beside a CPU build of torch: modules of
its names stand in for it here, of which nothing is called.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path


class _Anything:
    def __init__(self, *_, **__):
        raise AssertionError("torchvision was called")

    BICUBIC = BILINEAR = NEAREST = None


def stand_in(name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__file__ = f"<no {name}>"
    module.__getattr__ = lambda attribute: _Anything
    sys.modules[name] = module
    if "." in name:
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)


for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc"):
    stand_in(f"torchvision{name}")

import torch  # noqa: E402
from open_clip.model import CLIP, CustomTextCLIP  # noqa: E402


def write(folder):
    content = json.loads((folder / "config.in").read_text())
    model_config = dict(content["model_cfg"])
    kind = CustomTextCLIP if model_config.pop("custom_text", False) else CLIP
    torch.manual_seed(0)
    model = kind(**model_config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1)
            elif name.endswith(("bn3.weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
        inputs = torch.load(folder / "inputs.pt")
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:  # statistics that fit the activations: otherwise all pictures come out alike
            norm.momentum = 1.0
        if norms:
            model.train().encode_image(inputs["images"])
            model.eval()
        outputs = {
            "images": model.encode_image(inputs["images"], normalize=True),
            "captions": model.encode_text(inputs["tokens"], normalize=True),
        }
    torch.save(outputs, folder / "outputs.pt")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    checkpoint = {"epoch": 3, "name": "run", "state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(checkpoint | {"optimizer": optimizer.state_dict()}, folder / "epoch_3.pt")
    (folder / "open_clip_config.json").write_text(json.dumps(content))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write(Path(argument))
