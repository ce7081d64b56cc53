"""AscendCL's return codes as errors of ours, each with what the vendor's tables say of it.

Codes: acl_base_rt.h and the error_codes/ headers of CANN, and the tables behind `porting explain`.
"""

from __future__ import annotations

from porting.ascend.explanations import Explanation, explain_code
from porting.errors import DeviceUnavailable, InputError, OutOfResources, PortError, PortingError, RuntimeFailed, UsageError

REPEATED_INIT = 100002
NO_MEMORY = frozenset({200000, 207001, 207008, 207010, 207018, 245000, 300000})  # host, device, streams, what a model takes
WRONG_INDEX = frozenset({107001, 200002})
NO_DEVICE = frozenset({207004, 207006, 500004})  # none there, no permission, the driver
BAD_MODEL = frozenset({100003, *range(100012, 100017), 145002, 145006, 507008, *range(545002, 545006)})
BAD_INPUT = frozenset({100017, 100018, 100026, 100027, 145011, 145012, 145013, 145020, 145021, 145022})
# a session on which one of these was seen has work under way that nobody can call off, or no device any more
LOST = frozenset({507010, 507053, 507054, 507899, 507901})
TIMED_OUT = frozenset({107019, 107020, 507012, 507014, 507017, 507034, 507046, 507047, 545601})
BROKEN = LOST | TIMED_OUT


class AclError(RuntimeError):
    """A call that AscendCL answered with a code. It never reaches a user: `error_of` makes a PortingError of it."""

    def __init__(self, call: str, code: int, doing: str, said: str) -> None:
        super().__init__(f"{call} gives {code} to {doing}")
        self.call = call
        self.code = code
        self.doing = doing
        self.said = said


def error_of(error: AclError, where: str) -> PortingError:
    """The error a user sees. where: the device"""
    found = _explained(error.code)
    said = f"; CANN says: {error.said}" if error.said else ""
    if found is None:
        what, advice = f"cannot {error.doing}: {error.call} gives {error.code}, which is in no table{said}", ""
    else:
        name = f" {found.name}" if found.name else ""
        guess = "" if found.means_status == "documented" else f" ({found.means_status})"
        what = f"cannot {error.doing}: {error.call} gives {error.code}{name}: {found.means.rstrip('.')}{guess}{said}"
        advice = found.do
    return kind_of(error.code)(what, where=where, next=advice)


def kind_of(code: int) -> type[PortingError]:
    """Which error a code is."""
    if code in NO_MEMORY:
        return OutOfResources
    if code in WRONG_INDEX or code in NO_DEVICE or code in LOST:  # lost: no fault of what ran on it
        return DeviceUnavailable
    if code in BAD_MODEL:
        return PortError
    return InputError if code in BAD_INPUT else RuntimeFailed


def _explained(code: int) -> Explanation | None:
    try:
        return explain_code(str(code))
    except UsageError:
        return None
