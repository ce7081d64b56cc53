"""Port models from Nvidia GPUs to Huawei Ascend or CPUs through ONNX, and carry the evidence along.

    import porting
    report = porting.port("checkpoint/", "model.port", target="cpu", precision="int8")
    session = porting.load("model.port", device="cpu")
    outputs = session.run({"input_ids": ids})

Importing this package imports neither numpy, onnx, torch nor a vendor runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

# public name -> module that defines it; imported on first use. No module is called like a function: importing a submodule binds
# its name in the package, and the module would hide the function.
_PUBLIC = {
    "port": "porting.pipeline",
    "convert": "porting.conversion",
    "plan": "porting.forecast",
    "check": "porting.ascend.portability",
    "inspect": "porting.inspection",
    "validate": "porting.validation",
    "record": "porting.recording",
    "load": "porting.session",
    "generate": "porting.generation",
    "embed": "porting.embedding",
    "open_port": "porting.port_folder",
    "PortingError": "porting.errors",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from porting.errors import PortingError as PortingError


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'porting' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
