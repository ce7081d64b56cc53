"""The device `ascend`: a Huawei NPU. NEVER RUN ON HARDWARE; tested against a simulated CANN (`ascend-sim`).

Options after the device's name (`ascend:0,route=om`):

    route=om|cann|npu     om: a compiled model through AscendCL; cann: onnxruntime-cann's provider; npu: torch_npu
    handoff=NAME          om: the hand-off whose compiled model is run, where several fit the device
    om=PATH               om: another compiled model for the same program
    timeout=SECONDS       om: a run that takes longer is given up, and the session with it; 600

The other routes have options of their own: cann_provider.py, npu.py.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from porting.backends.ascend.acl import load_acl
from porting.backends.ascend.acl_codes import AclError, error_of
from porting.devices import choice_option, count_option, require_index, require_known_options
from porting.errors import DeviceUnavailable
from porting.types import Availability, BackendSession, Program, Unsupported

ROUTES = ("om", "cann", "npu")
OM_OPTIONS = ("route", "handoff", "om", "timeout")
TIMEOUT_S = 600
NEVER_RUN = "never run on hardware by this project"
MODULES = {"cann": "porting.backends.ascend.cann_provider", "npu": "porting.backends.ascend.npu"}


class AscendBackend:
    """An Ascend NPU. Never run on hardware."""

    name = "ascend"

    def probe(self) -> Availability:
        """Usable when CANN's runtime loads and counts at least one device. Starts nothing: the other routes start CANN themselves."""
        try:
            acl = load_acl()
            count, soc = acl.device_count(), acl.soc_name()
        except DeviceUnavailable as error:
            return Availability(False, error.what, error.next)
        except AclError as error:
            found = error_of(error, "probe of ascend")
            return Availability(False, found.what, found.next)
        if not count:
            return Availability(
                False, "CANN finds no device", "`npu-smi info` must list it; check the driver and ASCEND_RT_VISIBLE_DEVICES"
            )
        return Availability(True, detail={"devices": str(count), "soc": soc or "unknown", "evidence": NEVER_RUN})

    def unsupported(self, program: Program) -> list[Unsupported]:
        return []  # what cannot be compiled has no .om, and `porting check` names the nodes before anything is compiled

    def prepare(self, program: Program, options: Mapping[str, str]) -> BackendSession:
        """raises: UsageError, DeviceUnavailable, PortError, InputError, OutOfResources, RuntimeFailed"""
        route = choice_option(self.name, options, "route", ROUTES)
        if route == "om":
            return self._prepare_om(program, options)
        return _route(route).prepare(program, {name: value for name, value in options.items() if name != "route"})

    def _prepare_om(self, program: Program, options: Mapping[str, str]) -> BackendSession:
        from porting.backends.ascend.om_files import om_for
        from porting.backends.ascend.om_session import open_om

        require_known_options(self.name, options, OM_OPTIONS)
        timeout = count_option(self.name, options, "timeout", TIMEOUT_S)
        acl = load_acl()
        where = f"{self.name}:{options.get('index', '0')}"
        try:
            acl.initialise()
            index = require_index(self.name, options, acl.device_count())
            where = f"{self.name}:{index}"
            found = om_for(program, acl.soc_name(), options)
            return open_om(acl, index, found.path, program, timeout * 1000)
        except AclError as error:
            raise error_of(error, where) from error


def options_of(route: str) -> tuple[str, ...]:
    """What may stand after the device's name."""
    return OM_OPTIONS if route == "om" else tuple(importlib.import_module(MODULES[route]).OPTIONS)


def _route(name: str) -> Any:
    """The module of a route. raises: DeviceUnavailable where it is not there, or cannot run here"""
    if importlib.util.find_spec(MODULES[name]) is None:
        raise DeviceUnavailable(f"route={name} is not installed", where="device ascend", next="use route=om")
    module = importlib.import_module(MODULES[name])
    available: Availability = module.probe()
    if not available.usable:
        raise DeviceUnavailable(f"route={name} cannot run here: {available.reason}", where="device ascend", next=available.next)
    return module
