"""What torch_npu raises, as errors of ours: the code in its message explained, and memory that ran out told apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from porting.backends.ascend.acl_codes import BROKEN, AclError, error_of
from porting.errors import OutOfResources, PortingError, RuntimeFailed
from porting.verdict import printable

# "NPU function error: call aclnnAdd failed, error code is 561000", "ACL stream synchronize failed, error code:507011"
_CODE = re.compile(r"error code(?: is|:)\s*(\d{5,6})")
_CALL = re.compile(r"call (aclnn\w+) failed|error: ([\w:]+)\(|(ACL [\w ]+?) failed")
_FRAME = re.compile(r"\[ERROR\] [\d:.-]+ \([^)]*\) ERR\d{5} [\w ]+\.?|\[Error\]:")
_NO_KERNEL = re.compile(r"The operator '([\w:.]+)' would execute its main computation on CPU")
_SAID = 400
ADVICE = "`porting explain LOG` reads the log that ASCEND_LOG_PRINT_TO_STDOUT=1 prints (ASCEND_SLOG_PRINT_TO_STDOUT=1 in older releases)"


@contextlib.contextmanager
def npu_errors(torch: Any, device: str, doing: str) -> Iterator[None]:
    """raises: RuntimeFailed, OutOfResources, DeviceUnavailable or what else a code stands for, in place of torch's own"""
    try:
        yield
    except PortingError:
        raise
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        raise explained(error, isinstance(error, torch.OutOfMemoryError), device, doing) from error


def explained(error: BaseException, no_memory: bool, device: str, doing: str) -> PortingError:
    """The error a user sees. doing: "run the model" """
    text = printable(_FRAME.sub(" ", str(error)), 4 * _SAID)
    if no_memory or isinstance(error, MemoryError):
        return OutOfResources(
            f"cannot {doing}: {text[:_SAID]}",
            where=device,
            next="use a smaller batch or capacity, a narrower precision, or a board with more memory",
        )
    missing = _NO_KERNEL.search(text)
    if missing:
        return RuntimeFailed(
            f"cannot {doing}: {missing[1]} has no kernel in torch_npu, which would run it on the CPU",
            where=device,
            next="write the module without it; `docs` of op-plugin list what has a kernel",
        )
    code = _CODE.search(text)
    if code is None:
        return RuntimeFailed(f"cannot {doing}: {type(error).__name__}: {text[:_SAID]}", where=device, next=ADVICE)
    call = _CALL.search(text)
    name = next((part for part in call.groups() if part), "torch_npu") if call else "torch_npu"
    said = text[code.end() :].strip(" .\n")
    return error_of(AclError(name, int(code[1]), doing, said[:_SAID]), device)


def broken_by(error: BaseException) -> bool:
    """Whether nothing can be expected of the device after an error."""
    code = _CODE.search(str(error))
    return code is not None and int(code[1]) in BROKEN
