"""How long the inputs of an encoder may be: what is beyond its positions is refused before the runtime breaks on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import make_encoder

from porting.cli import main
from porting.conversion import convert
from porting.errors import InputError, PortError
from porting.port_folder import open_port
from porting.session import load

PADDING = 5


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for architecture in ("BertModel", "RobertaModel"):
        folder = tmp_path_factory.mktemp(architecture)
        make_encoder(folder / "s", architecture)
        found[architecture] = convert(folder / "s", folder / "port").path
    return found


@pytest.mark.parametrize(("architecture", "most"), [("BertModel", 40), ("RobertaModel", 34)])
def test_run_refuses_what_is_beyond_the_positions(
    architecture: str, most: int, ports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, code in ((most, 0), (most + 1, 2)):
        np.savez(tmp_path / f"{length}.npz", input_ids=np.full((2, length), 7))
        out = tmp_path / f"{length}-out.npz"
        arguments = ["run", str(ports[architecture]), "--input", str(tmp_path / f"{length}.npz"), "-o", str(out)]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code and out.exists() == (code == 0)
    output = capsys.readouterr().err
    for part in ("'input_ids'", str(most + 1), f"at most {most}", "max_position_embeddings 40", "next:"):
        assert part in output
    assert "onnxruntime" not in output and "nodes" not in output


def test_padding_of_bert_has_positions_and_of_roberta_has_none(ports: dict[str, Path]) -> None:
    feeds = {"input_ids": np.full((1, 41), PADDING)}
    feeds["input_ids"][0, 3:30] = 7
    with load(ports["RobertaModel"]) as session:
        assert session.run(feeds)["last_hidden_state"].shape == (1, 41, 48)
        with pytest.raises(InputError, match="35 along axis 1 that are not 5"):
            session.run({"input_ids": np.array([[7] * 10 + [PADDING] * 26, [7] * 35 + [PADDING]])})
    with load(ports["BertModel"]) as session, pytest.raises(InputError, match="41 along axis 1, at most 40"):
        session.run(feeds)


def _rewritten(port: Path, folder: Path, limits: object) -> Path:
    """The same port with other limits; None takes them out."""
    copy = Path(shutil.copytree(port, folder / "copy"))
    manifest = json.loads((copy / "port.json").read_text())
    del manifest["limits"]
    (copy / "port.json").write_text(json.dumps(manifest if limits is None else {**manifest, "limits": limits}))
    return copy


def test_a_port_from_before_limits_opens(ports: dict[str, Path], tmp_path: Path) -> None:
    assert open_port(_rewritten(ports["BertModel"], tmp_path, None)).program().limits == {}


WHOLE = {"axis": 1, "most": 40, "ignored": None, "reason": "x"}


@pytest.mark.parametrize(
    "limits",
    [7, {"input_ids": 3}, *({"input_ids": {**WHOLE, key: value}} for key in WHOLE for value in (True, [], 1.5))],
    ids=str,
)
def test_malformed_limits_are_refused(limits: object, ports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PortError, match="malformed"):
        open_port(_rewritten(ports["BertModel"], tmp_path, limits))


@pytest.mark.parametrize("limits", [{"other": WHOLE}, {"input_ids": {**WHOLE, "axis": 2}}], ids=str)
def test_limits_of_what_is_no_input_are_refused(limits: object, ports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a limit is given"):
        load(_rewritten(ports["BertModel"], tmp_path, limits))
