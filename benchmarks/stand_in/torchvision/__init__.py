"""Not torchvision: the five transforms that clip-anytorch imports, for a Python where torchvision cannot be had.

`benchmarks.peer` puts it in front only there, and says so. The steps are torchvision's on Pillow images; a test
compares the pixels with our own preprocessing, which is bit-identical to the published one.
"""
