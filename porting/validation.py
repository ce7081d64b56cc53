"""Is a port right? The public entry; what is compared, and how, follows from what the port is (judgement.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from porting.evidence import require_evidence
from porting.inputs import paths_of
from porting.judgement import judgement_for
from porting.pixel_inputs import as_numbers, checks_from_pixels, images_of, judged_with_pixels
from porting.port_folder import open_port
from porting.progress import silent
from porting.verdict import Verdict


def validate(
    port: str | Path,
    against: Any = None,
    device: str = "cpu",
    *,
    inputs: str | Path | Sequence[str | Path] | None = None,
    require_level: str = "static",
    progress: Any = silent,
    **options: Any,
) -> Verdict:
    """Compare a port with a reference on a device. Nothing is written; the evidence inside a port is what `porting.port` left there.

    against:       the source that it was made from (a path, a torch module, or what `open_source` gave), a golden, or another port
                   (reference "self": never a pass); the golden in the port's own evidence when left out
    inputs:        .npz files in place of the built-in inputs; not with a golden, which has its own. Of a port that was made with a description of
                   its images: uint8 pixels. Where nobody gives any, its way from pixels to outputs is shown on generated ones
    require_level: the weakest evidence level that counts
    options:       of `open_source`, for a source
    raises:        PortError, InputError, DeviceUnavailable, EvidenceUnavailable
    """
    opened_port = open_port(port)
    require_evidence(device, require_level, opened_port.manifest["target"])
    opened_port.verify()  # the verdict names the port by the hash of port.json: its files must be those that are listed there
    files, images = paths_of(inputs), images_of(opened_port)
    with (
        as_numbers(() if images is None else images.images, files, opened_port.program().inputs) as read,
        judgement_for(opened_port, against, device, read, options) as judgement,
    ):
        more = checks_from_pixels(opened_port, images, files, device)
        return judged_with_pixels(judgement, opened_port, images, device, more, progress=progress)
