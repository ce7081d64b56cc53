"""What route `cann` says on a machine where something is missing, doubled or half installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ascend_wheels.cann_children import child_environment, told

pytestmark = pytest.mark.cann_wheel

ASK = "a = cann_provider.probe(); tell([a.usable, a.reason, a.next])"


def distribution(folder: Path, name: str, version: str, *files: str) -> None:
    """The metadata of an installed wheel, and no more."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_everything_there(tmp_path: Path) -> None:
    usable, reason, _ = told(ASK, tmp_path)
    assert (usable, reason) == (True, "")


def test_two_flavours_of_onnxruntime(tmp_path: Path) -> None:
    distribution(tmp_path / "site", "onnxruntime", "1.31.1", "onnxruntime/__init__.py")
    usable, reason, advice = told(ASK, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert not usable
    assert "onnxruntime 1.31.1 and onnxruntime-cann 1.24.4 are in one environment" in reason
    assert advice.startswith("pip uninstall -y onnxruntime onnxruntime-cann, then pip install -c constraints-cann.txt")


def test_numpy_2(tmp_path: Path) -> None:
    """The wheel's metadata allows it, so pip installs it without a word."""
    distribution(tmp_path / "site", "numpy", "2.3.5")
    usable, reason, advice = told(ASK, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert not usable and reason == "onnxruntime-cann needs numpy 1, and numpy 2.3.5 is installed"
    assert '"numpy<2"' in advice


def test_another_flavour_alone(tmp_path: Path) -> None:
    source = f"""
        from porting.backends.ascend import cann_provider_setup
        cann_provider_setup.runtime_owners = lambda: []
        first = cann_provider.probe().reason
        cann_provider_setup.runtime_owners = lambda: ["onnxruntime 1.31.1"]
        {ASK.replace("tell([", "tell([first, ")}
    """
    none, usable, reason, advice = told(source, tmp_path)
    assert none == "onnxruntime-cann is not installed"
    assert not usable and "onnxruntime 1.31.1 is, which has no CANNExecutionProvider" in reason
    assert advice.startswith("pip uninstall -y onnxruntime, then")


def test_no_toolkit_in_use(tmp_path: Path) -> None:
    usable, reason, advice = told(ASK, tmp_path, ASCEND_HOME_PATH="")
    assert not usable and "ASCEND_HOME_PATH is not set" in reason and "set_env.sh" in advice
    usable, reason, _ = told(ASK, tmp_path, ASCEND_HOME_PATH=str(tmp_path / "gone"))
    assert not usable and "is no folder" in reason


@pytest.mark.parametrize("missing", ["libascendcl.so", "libacl_op_compiler.so", "libfmk_onnx_parser.so"])
def test_a_half_installed_toolkit_is_named(tmp_path: Path, missing: str) -> None:
    whole = Path(child_environment(tmp_path)["ASCEND_HOME_PATH"])
    half = tmp_path / "half" / "lib64"
    half.mkdir(parents=True)
    for file in (whole / "lib64").resolve().iterdir():
        if file.name != missing:
            (half / file.name).symlink_to(file)
    usable, reason, _ = told(ASK, tmp_path, ASCEND_HOME_PATH=str(half.parent))
    assert not usable and f"is not whole: {missing} missing" in reason


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    """It is there, and no library: the loader's words, not a run on the CPU."""
    whole = Path(child_environment(tmp_path)["ASCEND_HOME_PATH"])
    broken = tmp_path / "broken" / "lib64"
    broken.mkdir(parents=True)
    for file in (whole / "lib64").resolve().iterdir():
        (broken / file.name).symlink_to(file)
    (broken / "libfmk_onnx_parser.so").unlink()
    (broken / "libfmk_onnx_parser.so").write_text("cut short")
    source = "tell([cann_provider.probe().usable, error(session, models.matmul())])"
    usable, (kind, text) = told(source, tmp_path, ASCEND_HOME_PATH=str(broken.parent), LD_LIBRARY_PATH=str(broken))
    assert usable  # files are all that a probe looks at
    assert kind == "DeviceUnavailable" and "does not load on ascend:0" in text and "set_env.sh" in text


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    kind, text = told('tell(error(session, models.matmul(), index="3"))', tmp_path)
    assert kind == "DeviceUnavailable" and "ascend:3 does not exist: 1 found" in text


def test_what_an_older_onnxruntime_computes_wrongly_does_not_matter(tmp_path: Path) -> None:
    """It computes nothing here: every node is CANN's."""
    source = """
        from dataclasses import replace
        program = replace(program_from_onnx(models.matmul()), min_runtime={"onnxruntime": "1.28"})
        tell(error(session, program))
    """
    assert told(source, tmp_path) is None
