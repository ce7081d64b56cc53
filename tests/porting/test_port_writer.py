"""What the writer makes of weights: linked or written, exact, refused when damaged, never half of it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from porting import port_staging, port_writer, weights
from porting.converters.checkpoints.folder import FolderCheckpoint
from porting.converters.passes.quantize_linear import INT4, quantize_rows
from porting.errors import CheckpointError, InputError, OutOfResources, PortError, UsageError
from porting.port_folder import open_port
from porting.port_writer import Source, write_port
from porting.progress import silent
from porting.types import Graph, TensorSpec
from porting.weights import Stream, is_finite, source_stream
from tests import small_ports
from tests.small_ports import convert_folder, in_child, random_tensors, tree, write_folder
from tests.unprivileged import as_unprivileged, open_folder

ROOT = str(Path(small_ports.__file__).resolve().parents[1])
TENSORS = {"matrix": (300, 64), "vector": (70,), "row": (1, 4000), "scalar": (), "empty": (0, 8), "thin": (5, 0)}


@pytest.fixture(autouse=True)
def _small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor here takes several stripes; `row` is one row that is larger than a stripe."""
    monkeypatch.setattr(weights, "STRIPE_BYTES", 8192)
    monkeypatch.setattr(port_writer, "JOURNAL_EVERY", 32768)


def run(port: Path) -> dict[str, np.ndarray]:
    """The port in plain onnxruntime: the weights it holds."""
    session = onnxruntime.InferenceSession(port / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name.removeprefix("out."): value for name, value in zip(names, session.run(None, {}), strict=True)}


def require_equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


# --- linked and written ---------------------------------------------------------------------------------------------


def test_linked_weights_are_the_source_file_untouched(tmp_path: Path) -> None:
    tensors = random_tensors(TENSORS)
    source = write_folder(tmp_path / "source", tensors) / "model.safetensors"
    source.chmod(0o440)
    before = source.stat()
    port = convert_folder(source.parent, tmp_path / "port")
    after = source.stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, before.st_size)
    assert (tmp_path / "port/weights/model.safetensors").samefile(source)
    assert not (tmp_path / "port/weights/weights.bin").exists()
    assert port.manifest["weights"]["written_bytes"] == 0
    assert port.manifest["weights"]["linked_bytes"] == sum(a.nbytes for a in tensors.values())
    require_equal(run(tmp_path / "port"), tensors)
    port.verify()


def test_copied_weights_are_never_links(tmp_path: Path) -> None:
    tensors = random_tensors(TENSORS)
    source = write_folder(tmp_path / "source", tensors)
    port = convert_folder(source, tmp_path / "port", weights="copy")
    assert port.manifest["weights"]["linked_bytes"] == 0
    assert [f["linked"] for f in port.manifest["files"]] == [False] * 3
    assert all(p.stat().st_nlink == 1 for p in (tmp_path / "port").rglob("*") if p.is_file())
    shutil.rmtree(source)
    require_equal(run(tmp_path / "port"), tensors)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_stored_dtype_that_the_graph_does_not_take_is_written(tmp_path: Path, dtype: type) -> None:
    tensors = random_tensors({"a": (200, 64), "b": (64,)}, dtype)
    tensors["c"] = random_tensors({"c": (400, 64)})["c"]  # most of the file, stored as the graph takes it
    port = convert_folder(write_folder(tmp_path / "source", tensors), tmp_path / "port")
    assert port.manifest["weights"]["linked_bytes"] == tensors["c"].nbytes
    require_equal(run(tmp_path / "port"), {name: a.astype(np.float32) for name, a in tensors.items()})


def test_a_file_of_which_little_would_be_used_is_copied_from_not_linked(tmp_path: Path) -> None:
    tensors = random_tensors({"a": (200, 64)}, np.float16) | random_tensors({"c": (64, 4)})
    kept = convert_folder(write_folder(tmp_path / "source", tensors), tmp_path / "port").manifest["weights"]
    assert kept["linked_bytes"] == 0
    assert "only 1,024 of its" in kept["not_linked"]["model.safetensors"]
    assert not (tmp_path / "port" / "weights" / "model.safetensors").exists()
    require_equal(run(tmp_path / "port"), {name: a.astype(np.float32) for name, a in tensors.items()})


def test_quantised_weights_have_several_outputs_per_stream(tmp_path: Path) -> None:
    tensors = random_tensors({"matrix": (301, 96), "vector": (70,)})
    convert_folder(write_folder(tmp_path / "source", tensors), tmp_path / "port", quantize=True)
    whole = quantize_rows(tensors["matrix"], INT4)
    got = run(tmp_path / "port")
    for name, wanted in zip(("codes", "scales", "zero_points"), whole, strict=True):
        np.testing.assert_array_equal(got[f"matrix.{name}"], wanted)
    np.testing.assert_array_equal(got["vector"], tensors["vector"])


@pytest.mark.parametrize("kept", ["copy", "link"])
def test_weights_in_the_body_of_a_loop_are_streamed_too(tmp_path: Path, kept: str) -> None:
    """Never linked: onnxruntime refuses a file with a second link there."""
    folder = write_folder(tmp_path / "source", random_tensors({"w": (64, 64)}))
    with FolderCheckpoint(folder) as checkpoint:
        body = small_ports.graph_of([source_stream(checkpoint, "w")]).model.graph
        condition = ir.Value(name="condition", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        node = ir.node("If", [condition], {"then_branch": body, "else_branch": body.clone()}, num_outputs=1)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
            "y",
            ir.TensorType(ir.DataType.FLOAT),
            body.outputs[0].shape,
        )
        main = ir.Graph([condition], node.outputs, nodes=[node], opset_imports={"": 21}, name="main")
        write_port(
            Graph(ir.Model(main, ir_version=10)),
            tmp_path / "port",
            small_ports.MANIFEST,
            Source("safetensors", checkpoint.files),
            weights=kept,
        )
    assert (tmp_path / "port/model.onnx").stat().st_size < 4096
    assert (tmp_path / "port/weights/weights.bin").stat().st_size == 64 * 64 * 4  # one stream, once
    session = onnxruntime.InferenceSession(tmp_path / "port/model.onnx")
    assert session.run(None, {"condition": np.array(True)})[0].shape == (64, 64)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", random_tensors(TENSORS))
    for weights_ in ("link", "copy"):
        convert_folder(source, tmp_path / f"one-{weights_}", weights=weights_, quantize=True)
        convert_folder(source, tmp_path / f"two-{weights_}", weights=weights_, quantize=True)
        assert tree(tmp_path / f"one-{weights_}") == tree(tmp_path / f"two-{weights_}")


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it was given: 2 GB at most, or what fits before a signal."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: pwrite(fd, view[:1000], offset))
    tensors = random_tensors(TENSORS)
    convert_folder(write_folder(tmp_path / "source", tensors), tmp_path / "port", weights="copy")
    require_equal(run(tmp_path / "port"), tensors)


def test_a_port_holds_what_it_lists_and_nothing_else(tmp_path: Path) -> None:
    """No journal, no temporary file, no trial link."""
    source = write_folder(tmp_path / "source", random_tensors(TENSORS))
    port = convert_folder(source, tmp_path / "port", quantize=True)
    assert {f["path"] for f in port.manifest["files"]} | {"port.json"} == tree(tmp_path / "port").keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["port", "source"]


def test_a_cache_made_of_symbolic_links_is_linked_at_its_blobs(tmp_path: Path) -> None:
    tensors = random_tensors({"a": (64, 8)})
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1234"
    write_folder(blobs, tensors)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (blobs / name).rename(blobs / f"blob-of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    convert_folder(snapshot, tmp_path / "port")
    linked = tmp_path / "port/weights/model.safetensors"
    assert not linked.is_symlink() and linked.samefile(blobs / "blob-of-model.safetensors")
    require_equal(run(tmp_path / "port"), tensors)


class TwoFolders:
    """Tensors of two folders whose files have the same names."""

    def __init__(self, folders: list[Path]) -> None:
        self.parts = [FolderCheckpoint(folder) for folder in folders]
        self.streams = [source_stream(part, name) for part in self.parts for name in part.tensors]
        self.source = Source("safetensors", tuple(f for part in self.parts for f in part.files))


def test_two_source_files_of_one_name_stay_two(tmp_path: Path) -> None:
    first, second = random_tensors({"a": (64, 8)}, seed=1), random_tensors({"b": (64, 8)}, seed=2)
    both = TwoFolders([write_folder(tmp_path / "1", first), write_folder(tmp_path / "2", second)])
    port = write_port(small_ports.graph_of(both.streams), tmp_path / "port", small_ports.MANIFEST, both.source)
    assert [f["path"] for f in port.manifest["files"] if f["linked"]] == [
        "weights/model.safetensors",
        "weights/1-model.safetensors",
    ]
    require_equal(run(tmp_path / "port"), first | second)


@pytest.mark.parametrize("name", ["weights.bin", "a\\b.safetensors", ".hidden", "mod\u00e8le:1.safetensors", "x" * 255])
def test_the_name_of_a_source_file_can_do_no_harm(tmp_path: Path, name: str) -> None:
    """`weights.bin` is the writer's own name: the source must not be written through the link."""
    tensors = random_tensors({"a": (64, 64)})
    folder = write_folder(tmp_path / "source", tensors)
    source = (folder / "model.safetensors").rename(folder / name)
    before = source.read_bytes()
    stored = FolderCheckpoint(write_folder(tmp_path / "2", tensors)).tensors["a"]
    streams = [
        Stream([TensorSpec(half, "float32", (64, 64))], 64, ["a"], lambda a, b: [tensors["a"][a:b]], place)
        for half, place in (("linked", replace(stored, file=source)), ("written", None))
    ]
    write_port(small_ports.graph_of(streams), tmp_path / "port", small_ports.MANIFEST, Source("safetensors", [source]))
    assert source.read_bytes() == before
    assert source.stat().st_nlink == 2
    require_equal(run(tmp_path / "port"), {"linked": tensors["a"], "written": tensors["a"]})


def test_another_file_system_is_named_as_the_reason(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    tensors = random_tensors({"a": (64, 8)})
    folder = shm / f"porting-test-{os.getpid()}"
    try:
        port = convert_folder(write_folder(folder, tensors), tmp_path / "port")
    finally:
        shutil.rmtree(folder)
    assert port.manifest["weights"]["not_linked"] == {"model.safetensors": "on another file system"}
    require_equal(run(tmp_path / "port"), tensors)


def test_a_file_of_another_owner_is_named_as_the_reason(tmp_path: Path) -> None:
    protected = Path("/proc/sys/fs/protected_hardlinks")
    if os.geteuid() != 0 or not protected.exists() or protected.read_text().strip() != "1":
        pytest.skip("needs root, and a system that protects hard links")
    tensors = random_tensors({"a": (64, 8)})
    with open_folder() as folder:
        source = write_folder(folder / "source", tensors)
        (folder / "mine").mkdir()
        (folder / "mine").chmod(0o777)
        reasons = as_unprivileged(lambda: convert_folder(source, folder / "mine/port").manifest["weights"]["not_linked"])
        assert reasons == {"model.safetensors": "the system forbids hard links to this file (another owner)"}
        require_equal(run(folder / "mine/port"), tensors)


# --- damaged weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.float32, {"weights": "link"}),
        (np.float32, {"weights": "copy"}),
        (np.float32, {"quantize": True}),
        (np.float16, {}),
        (ml_dtypes.bfloat16, {}),
    ],
)
def test_nan_and_inf_are_refused_with_name_and_position(tmp_path: Path, dtype: type, options: dict, bad: float) -> None:
    tensors = random_tensors({"fine": (90, 64), "layers.3.broken": (90, 64)}, dtype)
    tensors["layers.3.broken"][77, 5] = bad
    source = write_folder(tmp_path / "source", tensors)
    with pytest.raises(CheckpointError, match=rf"tensor 'layers\.3\.broken' holds {bad} at \[77, 5\]") as caught:
        convert_folder(source, tmp_path / "port", **options)
    assert caught.value.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]  # and no partial port: it could never be gone on with


def test_nan_in_a_scalar_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"s": np.array(np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"tensor 's' holds nan at \[\]"):
        convert_folder(source, tmp_path / "port")


def test_a_value_that_the_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"a": np.array([1.0, 70000.0], np.float32)})
    with pytest.raises(CheckpointError, match=r"tensor 'a' holds inf at \[1\]"):
        convert_folder(source, tmp_path / "port", dtype="float16")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_is_finite_agrees_with_numpy_on_every_16_bit_pattern(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(weights.dtype_of(name))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(is_finite(every), np.isfinite(every))


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    """Else port.json would hold the hash of the old bytes beside the time of the new ones, and loading would trust it."""
    folder = write_folder(tmp_path / "source", random_tensors({"a": (300, 64)}))

    def meddle(label: str, total: int, unit: str = "bytes"):
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        return silent(label, total, unit)

    with pytest.raises(CheckpointError, match="changed while it was converted"):
        convert_folder(folder, tmp_path / "port", progress=meddle)
    assert not (tmp_path / "port").exists()


def test_progress_adds_up_to_its_total(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}

    @contextmanager
    def counting(label: str, total: int, unit: str = "bytes"):
        counts = seen[label] = [total, 0]

        def advance(amount: int) -> None:
            counts[1] += amount

        yield advance

    convert_folder(
        write_folder(tmp_path / "source", random_tensors(TENSORS)), tmp_path / "port", quantize=True, progress=counting
    )
    assert set(seen) == {"weights", "checksums"}
    assert all(total == done > 0 for total, done in seen.values()), seen


# --- where it may be written ----------------------------------------------------------------------------------------


def test_an_existing_destination_is_refused_without_force(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", random_tensors({"a": (64, 8)}))
    convert_folder(source, tmp_path / "port")
    before = tree(tmp_path / "port")
    with pytest.raises(UsageError, match="already exists"):
        convert_folder(source, tmp_path / "port")
    assert tree(tmp_path / "port") == before


def test_force_replaces_a_port_and_nothing_else(tmp_path: Path) -> None:
    old = write_folder(tmp_path / "old", random_tensors({"a": (64, 8)}, seed=1))
    new = write_folder(tmp_path / "new", random_tensors({"a": (64, 8)}, seed=2))
    convert_folder(old, tmp_path / "port")
    convert_folder(new, tmp_path / "port", force=True)
    convert_folder(new, tmp_path / "fresh")
    assert tree(tmp_path / "port") == tree(tmp_path / "fresh")
    assert (old / "model.safetensors").stat().st_nlink == 1  # the old port's link went, the file stayed

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    (tmp_path / "link").symlink_to("port")
    (tmp_path / "dangling").symlink_to("nowhere")
    for precious in ("photos", "file", "link", "dangling"):
        with pytest.raises(UsageError, match="replaces ports only"):
            convert_folder(new, tmp_path / precious, force=True)
    assert (tmp_path / "photos" / "wedding.jpg").read_bytes() == b"dear"
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_file_system_without_an_exchange_is_served_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_staging, "_exchange", lambda one, other: False)
    old = write_folder(tmp_path / "old", random_tensors({"a": (64, 8)}, seed=1))
    new = write_folder(tmp_path / "new", random_tensors({"a": (64, 8)}, seed=2))
    convert_folder(old, tmp_path / "port")
    convert_folder(new, tmp_path / "port", force=True)
    convert_folder(new, tmp_path / "fresh")
    assert tree(tmp_path / "port") == tree(tmp_path / "fresh")
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("where", ["missing/port", "file/port"])
def test_a_destination_without_a_folder_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="no such folder"):
        convert_folder(write_folder(tmp_path / "source", random_tensors({"a": (4,)})), tmp_path / where)


def test_a_link_in_place_of_the_partial_port_is_not_followed(tmp_path: Path) -> None:
    """Anybody may have put it into a shared folder; emptying what it points to would be theirs to choose."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_bytes(b"dear")
    (tmp_path / ".port.partial").symlink_to("precious")
    with pytest.raises(InputError):
        convert_folder(write_folder(tmp_path / "source", random_tensors({"a": (4,)})), tmp_path / "port")
    assert (tmp_path / "precious" / "thesis.tex").read_bytes() == b"dear"


def test_two_runs_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", random_tensors({"a": (64, 8)}))
    with port_staging.staging_for(tmp_path / "port", resume=False) as first:
        (first.path / "work").write_bytes(b"dear")
        for resume in (False, True):
            with pytest.raises(UsageError, match="another conversion"):
                convert_folder(source, tmp_path / "port", resume=resume)
        assert (first.path / "work").read_bytes() == b"dear"


@pytest.mark.parametrize("name", ["port.json", "model.onnx", "weights", "../outside", "/tmp/outside", "sub/folder", "a\\b", ""])
def test_side_files_stay_inside(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "source", random_tensors({"a": (4,)}))
    with FolderCheckpoint(folder) as checkpoint:
        graph = small_ports.graph_of([source_stream(checkpoint, "a")])
        with pytest.raises(PortError, match="may not"):
            write_port(graph, tmp_path / "port", small_ports.MANIFEST, Source("x", checkpoint.files, {name: b"x"}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# --- permissions, as a user who has none ------------------------------------------------------------------------------


def test_no_permission_on_the_target_folder(tmp_path: Path) -> None:
    with open_folder() as folder:
        source = write_folder(folder / "source", random_tensors({"a": (64, 8)}))
        with pytest.raises(InputError, match="no permission") as caught:
            as_unprivileged(lambda: convert_folder(source, folder / "port"))
        assert caught.value.exit_code == 2
        assert str(folder) in caught.value.where
        assert sorted(p.name for p in folder.iterdir()) == ["source"]


def test_no_permission_to_look_into_the_target_folder(tmp_path: Path) -> None:
    with open_folder() as folder:
        source = write_folder(folder / "source", random_tensors({"a": (64, 8)}))
        (folder / "closed").mkdir()
        convert_folder(source, folder / "closed/port")
        (folder / "closed").chmod(0o700 if os.geteuid() == 0 else 0)
        with pytest.raises(InputError, match="no permission") as caught:
            as_unprivileged(lambda: convert_folder(source, folder / "closed/port", force=True))
        assert caught.value.exit_code == 2
        with pytest.raises(PortError, match="cannot be read: Permission denied"):
            as_unprivileged(lambda: open_port(folder / "closed/port").path)
        (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("unreadable", ["config.json", "model.safetensors"])
def test_an_unreadable_source_file(tmp_path: Path, unreadable: str) -> None:
    with open_folder() as folder:
        source = write_folder(folder / "source", random_tensors({"a": (64, 8)}))
        (folder / "mine").mkdir()
        (folder / "mine").chmod(0o777)

        def convert() -> None:
            with FolderCheckpoint(source) as checkpoint:  # opened while it could be read
                graph = small_ports.graph_of([source_stream(checkpoint, "a")])
                (source / unreadable).chmod(0)
                write_port(graph, folder / "mine/port", small_ports.MANIFEST, Source("x", checkpoint.files))

        if os.geteuid() == 0:
            shutil.chown(source, 65534, 65534)
            for file in source.iterdir():
                shutil.chown(file, 65534, 65534)
        with pytest.raises(InputError, match="no permission") as caught:
            as_unprivileged(convert)
        assert caught.value.exit_code == 2
        assert unreadable in caught.value.where
        assert not list((folder / "mine").iterdir())


# --- a full disk ----------------------------------------------------------------------------------------------------


def test_a_disk_known_to_be_too_small_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "source", random_tensors({"a": (64, 8)}))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OutOfResources, match="are free") as caught:
        convert_folder(source, tmp_path / "port", weights="copy")
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_file_size_limit_is_out_of_resources_and_can_be_resumed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", random_tensors({"a": (2000, 64), "b": (2000, 64)}))
    convert_folder(source, tmp_path / "whole", weights="copy")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        convert_folder(source, tmp_path / "port", weights="copy")

    with pytest.raises(OutOfResources, match="disk is full") as caught:
        in_child(limited)
    assert caught.value.exit_code == 4
    with pytest.raises(PortError):
        open_port(tmp_path / "port")
    convert_folder(source, tmp_path / "port", weights="copy", resume=True)
    assert tree(tmp_path / "port") == tree(tmp_path / "whole")


FULL_DISK = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.small_ports import convert_folder, tree
from porting import port_writer, weights
from porting.errors import OutOfResources, PortError
from porting.port_folder import open_port

weights.STRIPE_BYTES, port_writer.JOURNAL_EVERY = 1 << 16, 1 << 19
source, disk, whole = Path({source!r}), Path({disk!r}), Path({whole!r})
free = disk / "others"
taken = []

def neighbour(label, total, unit="bytes"):
    "Somebody else's file fills the disk once half of the weights are written."
    from contextlib import contextmanager
    @contextmanager
    def bar():
        done = [0]
        def advance(amount):
            done[0] += amount
            if done[0] > total // 2 and not free.exists():
                with open(free, "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(1 << 16))
                    except OSError as error:
                        taken.append(error.errno)
        yield advance
    return bar()

try:
    convert_folder(source, disk / "port", weights="copy", progress=neighbour)
    raise SystemExit("the disk did not fill up")
except OutOfResources as error:
    assert error.exit_code == 4 and "disk is full" in error.what, str(error)
assert len(taken) == 1
for name in ("port", ".port.partial"):
    try:
        open_port(disk / name)
        raise SystemExit(name + " loads")
    except PortError:
        pass
assert (disk / ".port.partial/journal.json").exists(), "nothing to go on from"
free.unlink()
convert_folder(source, disk / "port", weights="copy", resume=True)
assert tree(disk / "port") == tree(whole)
print("resumed")
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk")
def test_a_disk_that_fills_up_meanwhile_is_resumed_when_there_is_space(tmp_path: Path) -> None:
    """On a real file system of 4 MB, mounted where only the child sees it."""
    source = write_folder(tmp_path / "source", random_tensors({"a": (5000, 64), "b": (5000, 64)}))
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    disk.mkdir()
    convert_folder(source, whole, weights="copy")
    script = FULL_DISK.format(root=ROOT, source=str(source), disk=str(disk), whole=str(whole))
    mount = f"mount -t tmpfs -o size=4m tmpfs {disk} || exit 77; exec {sys.executable} -"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], input=script, text=True, capture_output=True, timeout=120)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    assert done.stdout.strip() == "resumed", done.stderr


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, OutOfResources), (errno.EDQUOT, OutOfResources), (errno.EIO, InputError), (errno.EROFS, InputError)],
)
def test_whatever_the_system_refuses_at_any_step_nothing_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type
) -> None:
    """Each call that changes the disk fails in turn."""
    source = write_folder(tmp_path / "source", random_tensors({"a": (300, 64), "b": (64,)}))
    calls = {name: getattr(os, name) for name in ("pwrite", "ftruncate", "fdatasync", "fsync", "rename", "mkdir", "utime")}
    for broken in itertools.count():
        counter = itertools.count()
        for name, real in calls.items():

            def failing(*args, _real=real, _calls=counter, _broken=broken, **kwargs):
                if next(_calls) == _broken:
                    raise OSError(code, os.strerror(code))
                return _real(*args, **kwargs)

            monkeypatch.setattr(os, name, failing)
        try:
            convert_folder(source, tmp_path / "port", weights="copy")
            break
        except kind:
            monkeypatch.undo()
            if (tmp_path / "port").exists():  # only the last step, after the rename, may leave one, and then a whole one
                open_port(tmp_path / "port").verify()
                shutil.rmtree(tmp_path / "port")
            convert_folder(source, tmp_path / "port", weights="copy", resume=True)
            shutil.rmtree(tmp_path / "port")
    assert broken > 15


# --- size -----------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.small_ports import convert_folder
convert_folder(Path({source!r}), Path({port!r}), weights={weights!r}, dtype={dtype!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(source: Path, port: Path, weights_: str, dtype: str) -> int:
    """Peak memory of a conversion in a process of its own."""
    script = PEAK.format(root=ROOT, source=str(source), port=str(port), weights=weights_, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True)
    return int(done.stdout)


def write_sparse(folder: Path, sizes: dict[str, tuple[int, ...]], last: np.ndarray) -> None:
    """A folder whose float32 weights are zeros that take no disk, and at the very end the tensor `last`."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Test"]}')
    header, end = {}, 0
    for name, shape in [*sizes.items(), ("last", last.shape)]:
        start, end = end, end + int(np.prod(shape)) * 4
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        file.seek(-last.nbytes, os.SEEK_END)
        file.write(last.tobytes())


@pytest.mark.slow
@pytest.mark.parametrize(("weights_", "dtype"), [("link", "float32"), ("copy", "float32"), ("copy", "float16")])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, weights_: str, dtype: str) -> None:
    last = random_tensors({"last": (4, 4)})["last"]
    write_sparse(tmp_path / "small", {"a": (16_000, 1000)}, last)  # 64 MB
    write_sparse(tmp_path / "large", {"a": (128_000, 1000), "b": (128_000, 1000)}, last)  # 1 GB
    small = peak_bytes(tmp_path / "small", tmp_path / "small.port", weights_, dtype)
    large = peak_bytes(tmp_path / "large", tmp_path / "large.port", weights_, dtype)
    print(f"\npeak RSS, {weights_} {dtype}: 64 MB {small / 2**20:.0f} MiB, 1 GB {large / 2**20:.0f} MiB")
    # four stripes: what differs is which of them are alive at once, and the allocator's mood
    assert large - small < 4 * (8 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("weights_", ["link", "copy"])
def test_tensors_over_2_gb_and_offsets_over_4_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_: str) -> None:
    if weights_ == "copy" and shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("needs 8 GB of disk")
    monkeypatch.undo()  # stripes as installed: those of 8 kB would take minutes
    last = random_tensors({"last": (4, 4)})["last"]
    write_sparse(tmp_path / "source", {"a": (550_000, 1000), "b": (550_000, 1000)}, last)  # 2.2 GB each
    with FolderCheckpoint(tmp_path / "source") as checkpoint:
        streams = [source_stream(checkpoint, name) for name in checkpoint.tensors]
        port = write_port(
            small_ports.graph_of(streams),
            tmp_path / "port",
            small_ports.MANIFEST,
            Source("safetensors", checkpoint.files),
            weights=weights_,
        )
    assert port.manifest["weights"]["linked_bytes" if weights_ == "link" else "written_bytes"] > 4 << 30
    session = onnxruntime.InferenceSession(tmp_path / "port/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["out.last"], {})[0], last)
