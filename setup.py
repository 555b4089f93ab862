"""The distribution. Version ranges are here, exact pins in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="clip-transforms",
    version="0.1.0",
    description="CLIP embeddings, scores and zero-shot labels of image–caption shards, with Apache Beam",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["clip_transforms*", "schemas*", "pipelines*"]),
    package_data={"clip_transforms.demo": ["demo.safetensors"], "clip_transforms.pages": ["templates/*"]},
    install_requires=[
        "apache-beam>=2.76",  # earlier releases leak memory
        "torch>=2.4",
        "numpy>=1.26",
        "pyarrow>=18",
        "fsspec>=2024.6",
        "Pillow>=11.3",  # AVIF
        "ftfy>=6.1",
        "regex>=2023.12",
        "safetensors>=0.4.3",
        "tqdm>=4.66",
        "braceexpand>=0.1.7",
        "duckdb>=2.0",  # the conditions of filter; the trees of earlier releases look otherwise
        "threadpoolctl>=3.1",  # comes with scikit-learn
        "scikit-learn>=1.5",  # average precision, ROC AUC and the linear probe of evaluate
        "Jinja2>=3.1",  # the pages of report, search --html and browse
        "starlette>=0.46",
        "uvicorn>=0.30",  # with Starlette, the server of browse
        "openai-clip>=1.0.1",  # only for its vocabulary file; the package is never imported
    ],
    extras_require={
        "gcp": ["apache-beam[gcp]", "gcsfs>=2024.6"],  # gs://, and Dataflow
        "aws": ["s3fs>=2024.6"],  # s3://
        "search": ["faiss-cpu>=1.9"],  # blocks of near duplicates in large datasets, and --as faiss
        "lance": ["pylance>=1"],  # --as lance
        "heic": ["pillow-heif>=1.1"],  # HEIC, as phones write it
        "test": [
            *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "build"),
            *("ruff", "mypy", "types-regex", "types-tqdm", "pre-commit"),
            "pillow-heif>=1.1",
            *("faiss-cpu>=1.9", "pylance>=1", "lancedb", "webdataset", "fire"),  # fire is a dependency of autofaiss
            *("polars", "pandas", "datasets", "transformers"),
            *("s3fs>=2024.6", "moto[s3]", "flask", "flask-cors"),  # a real S3 server on loopback
        ],
        "test-runners": ["ray>=2.40", "kubernetes-validate>=1.37"],  # see CONTRIBUTING.md
        "test-browser": ["playwright", "axe-playwright-python"],  # with Debian's chromium; see make test-browser
    },
)
