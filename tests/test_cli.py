"""The command line in process: grammar, exit codes, and what a user's mistakes are answered with."""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.tiny import NAMES, save_model, tiny_model
from yolokd import UserError, __version__, cli, config
from yolokd.command.demo import run_demo
from yolokd.command.help import GUIDES, help_text
from yolokd.command.hosted import tell_other_numbers
from yolokd.compare import compare
from yolokd.config import inputs
from yolokd.environment import installed
from yolokd.inspection import inspect as inspect_image
from yolokd.losses import LOSSES


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_data: Path,
    tiny_student: Callable[[str], Path],
    tiny_teacher: Callable[[str], Path],
) -> SimpleNamespace:
    """Good and bad files by name."""
    from ultralytics.nn.tasks import ClassificationModel

    root = tmp_path_factory.mktemp("files")
    student, teacher = tiny_student("yolov8n"), tiny_teacher("yolov8n")
    (root / "text.pt").write_text("not a model", encoding="utf-8")
    (root / "empty.pt").touch()
    (root / "cut.pt").write_bytes(student.read_bytes()[:200_000])
    (root / "folder.pt").mkdir()
    torch.save({"weights": 1}, root / "other.pt")
    classifier = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False)
    classifier.task = "classify"
    save_model(classifier, root / "classify.pt")
    description = yaml.safe_load(tiny_data.read_text(encoding="utf-8"))
    good = {**description, "path": str(tiny_data.parent)}

    def data(name: str, **changes: Any) -> None:
        kept = {k: v for k, v in {**good, **changes}.items() if v is not ...}
        (root / name).write_text(yaml.safe_dump(kept), encoding="utf-8")

    (root / "nothing" / "images").mkdir(parents=True)
    images = root / "unlabelled" / "images"
    images.mkdir(parents=True)
    first = next((tiny_data.parent / "images").rglob("*.png"), None) or next(
        (tiny_data.parent / "images").rglob("*.jpg")
    )
    (images / first.name).write_bytes(first.read_bytes())
    data("nothing.yaml", train=str(root / "nothing" / "images"))
    data("noval.yaml", val=str(root / "nothing" / "images"))
    data("unlabelled.yaml", train=str(images))
    data("missing.yaml", val="images/elsewhere")
    data("nonames.yaml", names=..., nc=...)
    (root / "broken.yaml").write_text("names: [a, b\ntrain: x", encoding="utf-8")
    (root / "recipe.yaml").write_text("method: pcd\npcd_stages: 2\nepochs: 7\n", encoding="utf-8")
    (root / "list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    return SimpleNamespace(root=root, student=student, teacher=teacher, data=tiny_data)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Overrides of the trainings that were started, instead of training."""
    from ultralytics import YOLO

    runs: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        YOLO, "train", lambda self, trainer, **overrides: runs.append({"trainer": trainer, **overrides})
    )
    return runs


def command(text: str, files: SimpleNamespace) -> list[str]:
    """Return the words of a command in which {student}, {data} and so on stand for the files."""
    return [word.format(**vars(files)) for word in text.split()]


MISTAKES = [
    # the words themselves
    ("trian", ["trian", "did you mean `yolokd train`", "methods"]),
    ("model={student} epochs=1", ["names no mode", "train"]),
    ("train model=[a", ["unmatched"]),
    ("train epochs=", ["'epochs='", "no value"]),
    ("train = 3", ["key=value"]),
    ("train epochs", ["'epochs' needs a value", "epochs=100"]),
    ("train teacher", ["'teacher' needs a value"]),
    ("train bogus", ["'bogus' is not a key", "key=value"]),
    ("train metod=pcd", ["'metod' is not a key", "method="]),
    ("train model={student} pcd_stagess=3", ["pcd_stagess", "pcd_stages=3"]),
    ("train model={student} dfmsd_ratio=0.3", ["dfmsd_ratio", "dfmsd_spatial_ratio"]),
    ("version now", ["'now' is too much"]),
    ("checks now", ["'now' is too much"]),
    # values
    ("train kd_share=-1", ["kd_share=-1", "> 0", "kd_share=auto"]),
    ("train kd_levels=8", ["kd_levels=8", "list", "[8,16,32]"]),
    ("train method=dfmds", ["method=dfmds", "did you mean dfmsd"]),
    ("train model={student} teacher={teacher} data={data} epochs=many", ["epochs=many", "int"]),
    ("train model={student} teacher={teacher} data={data} lr0=7", ["lr0=7", "0.0 and 1.0"]),
    ("train model={student} teacher={teacher} data={data} amp=fp8", ["amp=fp8", "bf16"]),
    # contradictions
    ("train model={student} data={data}", ["needs a teacher", "teacher=yolov8x.pt"]),
    ("train model={student} data={data} teacher={teacher} distill_model={teacher}", ["distill_model="]),
    ("train model={student} data={data} teacher=[{teacher},{teacher}] method=pcd", ["dfmsd"]),
    ("train model={student} data={data} teacher={teacher} quantize=8", ["quantize=8", "adapters"]),
    ("train model={student} data={data} teacher={teacher} int8", ["quantize=8", "adapters"]),
    (
        "segment train model={student} data={data} teacher={teacher}",
        ["task=segment", "detect model", "give a segment model"],
    ),
    # student
    ("train model={root}/missing.pt teacher={teacher} data={data}", ["model=", "missing.pt", "there is no file"]),
    ("train model=yolov8s teacher={teacher} data={data}", ["yolov8s.pt", "could not be downloaded", "put the file at"]),
    ("train model=yolov8nn.pt teacher={teacher} data={data}", ["yolov8nn.pt", "did you mean yolov8n"]),
    ("train model=runs/yolov8nn.pt teacher={teacher} data={data}", ["nor an official model of that name; give"]),
    ("train model={root}/text.pt teacher={teacher} data={data}", ["text.pt", "no PyTorch checkpoint"]),
    ("train model={root}/empty.pt teacher={teacher} data={data}", ["empty.pt", "empty"]),
    ("train model={root}/cut.pt teacher={teacher} data={data}", ["cut.pt", "cut off"]),
    ("train model={root}/other.pt teacher={teacher} data={data}", ["other.pt", "cannot be loaded"]),
    ("train model={root}/folder.pt teacher={teacher} data={data}", ["folder.pt is a folder"]),
    (
        "train model={root}/broken.yaml teacher={teacher} data={data}",
        ["broken.yaml", "cannot be read as an architecture"],
    ),
    ("train model={root}/classify.pt teacher={teacher} data={data}", ["classify model", "detect, segment"]),
    ("train model={root}/x.onnx teacher={teacher} data={data}", ["x.onnx", ".pt"]),
    # teacher
    ("train model={student} teacher={root}/missing.pt data={data}", ["teacher=", "missing.pt", "there is no file"]),
    (
        "train model={student} teacher=yolov8x data={data}",
        ["teacher=yolov8x", "could not be downloaded", "put the file"],
    ),
    ("train model={student} teacher={root}/text.pt data={data}", ["teacher=", "no PyTorch checkpoint"]),
    ("train model={student} teacher={root}/empty.pt data={data}", ["teacher=", "empty"]),
    ("train model={student} teacher={root}/cut.pt data={data}", ["teacher=", "cut off"]),
    ("train model={student} teacher={root}/folder.pt data={data}", ["teacher=", "is a folder"]),
    ("train model={student} teacher={root}/classify.pt data={data}", ["teacher=", "classify.pt", "detection model"]),
    ("train model={student} teacher=yolov8s.yaml data={data}", ["teacher=yolov8s.yaml", "without weights"]),
    ("train model={student} teacher=[{teacher},{root}/text.pt] data={data}", ["teacher=", "text.pt"]),
    # data
    ("train model={student} teacher={teacher}", ["data=coco8.yaml", "could not be downloaded", "put the dataset"]),
    ("train model={student} teacher={teacher} data={root}/none.yaml", ["none.yaml", "does not exist"]),
    ("train model={student} teacher={teacher} data={root}/nothing.yaml", ["no images for 'train:'"]),
    ("train model={student} teacher={teacher} data=[{data},{root}/none.yaml]", ["none.yaml", "does not exist"]),
    ("train model={student} teacher={teacher} data={root}/noval.yaml", ["no images for 'val:'"]),
    ("train model={student} teacher={teacher} data={root}/unlabelled.yaml", ["none of the training images has labels"]),
    ("train model={student} teacher={teacher} data={root}/missing.yaml", ["missing.yaml", "elsewhere"]),
    ("train model={student} teacher={teacher} data={root}/nonames.yaml", ["names"]),
    ("train model={student} teacher={teacher} data={root}/broken.yaml", ["broken.yaml", "dataset YAML"]),
    ("train model={student} teacher={teacher} data={root}/text.pt", ["text.pt", "dataset YAML"]),
    # folder, recipe, resume
    ("train model={student} teacher={teacher} data={data} project={root}/text.pt", ["project=", "is a file"]),
    ("train cfg=nosuch.yaml", ["cfg=nosuch.yaml", "recipes:", "dfmsd"]),
    ("train cfg={root}/list.yaml", ["list.yaml", "holds no keys"]),
    ("train cfg={root}/broken.yaml", ["broken.yaml", "YAML"]),
    ("train resume", ["resume needs", "last.pt"]),
    ("train resume model={student}", ["resume model=", "no unfinished run"]),
    ("train resume model={root}/missing.pt", ["missing.pt", "there is no file"]),
    # the host's modes
    ("val model={root}/missing.pt", ["missing.pt", "there is no file"]),
    ("val model={root}/text.pt", ["no PyTorch checkpoint"]),
    ("val model={student} method=pcd", ["method=pcd", "key of `yolokd train`"]),
    ("val model={student} teacher={teacher}", ["needs data="]),
    ("val model={student} teacher={teacher} data={data} conf=3", ["conf=3"]),
    ("val model={student} baseline={teacher} data={data} split=test", ["split=test"]),
    ("val model={student} batsh=1", ["'batsh' is not a key", "batch=16"]),
    ("val model={student} data={root}/none.yaml", ["none.yaml"]),
    ("val model={student} data={data} conf=3", ["conf=3"]),
    ("predict model={student} source={root}/none.jpg", ["none.jpg"]),
    ("predict model={root}/none.onnx", ["none.onnx"]),
    ("export format=onnx", ["needs a model"]),
    ("export model={root}/missing.pt format=onnx", ["missing.pt"]),
    ("export model={student} kd_gain=1", ["key of `yolokd train`"]),
]


@pytest.mark.parametrize(("text", "parts"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_gives_two_lines_at_most_and_code_2_and_leaves_nothing(
    text, parts, files, capsys, tmp_path, monkeypatch
):
    from ultralytics.utils import SETTINGS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SETTINGS, "runs_dir", str(tmp_path / "runs"))
    before = sorted(files.root.rglob("*"))
    assert cli.main(command(text, files)) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "WARNING" not in line]  # the host's warnings are not ours
    assert lines[0].startswith("yolokd: ") and len(lines) <= 2, said
    assert "Traceback" not in said
    assert all(part in said for part in parts), said
    assert not list(tmp_path.rglob("*.*")) and sorted(files.root.rglob("*")) == before


@pytest.mark.skipif(
    not hasattr(__import__("os"), "geteuid") or __import__("os").geteuid() == 0, reason="root may write"
)
def test_a_folder_without_permission_is_said(files, capsys, tmp_path):
    tmp_path.chmod(0o500)
    words = command("train model={student} teacher={teacher} data={data}", files)
    assert cli.main([*words, f"project={tmp_path}/runs"]) == 2
    assert "not writable" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said(files, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    words = command("train model={student} teacher={teacher} data={data}", files)
    assert cli.main([*words, f"project={tmp_path}/runs"]) == 2
    assert f"project={tmp_path}/runs: {tmp_path} is not writable" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_run_folder_is_said(files, capsys, tmp_path):
    (tmp_path / "first").write_text("notes")
    words = command("train model={student} teacher={teacher} data={data}", files)
    assert cli.main([*words, f"project={tmp_path}", "name=first", "exist_ok=True"]) == 2
    assert f"name=first: {tmp_path}/first is a file, not a folder; choose another name=" in capsys.readouterr().err


def test_train_hands_everything_to_the_trainer(files, started, capsys):
    words = command(
        "train detect model = {student} teacher= {teacher} data ={data} method=dfmsd+pcd kd_levels=[8, 16] kd_val "
        "--epochs=3, rect optimizer=SGD name=007 kd_gain=1 dfmsd_enhance=none",
        files,
    )
    assert cli.main(words) == 0
    from yolokd.trainers import DistillationTrainer

    assert started == [
        {
            "trainer": DistillationTrainer,
            "model": str(files.student),
            "teacher": str(files.teacher),
            "data": str(files.data),
            "method": "dfmsd+pcd",
            "kd_levels": [8, 16],
            "kd_val": True,
            "epochs": 3,
            "rect": True,
            "optimizer": "SGD",
            "name": "007",
            "kd_gain": 1.0,
            "dfmsd_enhance": "none",
        }
    ]


def test_names_without_suffix_and_lists_of_teachers(files, started):
    bare = {"student": files.student.with_suffix(""), "teacher": files.teacher.with_suffix(""), "data": files.data}
    text = "train model={student} teacher=[{teacher},{teacher}] data={data} method=dfmsd dfmsd_stages=[0.3]"
    assert cli.main(command(text, SimpleNamespace(**bare))) == 0
    assert started[0]["model"] == str(files.student) and started[0]["teacher"] == [str(files.teacher)] * 2
    assert started[0]["dfmsd_stages"] == [0.3]


def test_an_architecture_is_a_student(files, started):
    assert cli.main(command("train model=yolov8n.yaml teacher={teacher} data={data}", files)) == 0
    assert started[0]["model"] == "yolov8n.yaml"


def test_plain_training_needs_no_teacher(files, started):
    assert cli.main(command("train model={student} data={data} method=none", files)) == 0
    assert started[0]["method"] == "none" and "teacher" not in started[0]


@pytest.mark.parametrize("order", ["cfg={recipe} pcd_stages=5", "pcd_stages=5 cfg={recipe}"])
@pytest.mark.parametrize("recipe", ["{root}/recipe.yaml", "pcd.yaml", "pcd"])
def test_explicit_keys_stand_over_a_recipe(order, recipe, files, started):
    words = command(f"train model={{student}} teacher={{teacher}} data={{data}} {order.format(recipe=recipe)}", files)
    assert cli.main(words) == 0
    assert started[0]["method"] == "pcd" and started[0]["pcd_stages"] == 5
    assert started[0].get("epochs") == (7 if "root" in recipe else None)
    assert "cfg" not in started[0]


def test_a_local_recipe_goes_before_ours(files, started, tmp_path):
    (tmp_path / "pcd.yaml").write_text("method: mgd\n", encoding="utf-8")
    assert cli.main(command("train model={student} teacher={teacher} data={data} cfg=pcd.yaml", files)) == 0
    assert started[0]["method"] == "mgd"


def test_resume_takes_the_checkpoint_either_way(files, started, tmp_path):
    last = tmp_path / "last.pt"
    torch.save({"epoch": 1, "model": tiny_model(), "ema": None, "optimizer": {"x": 1}, "train_args": {}}, last)
    for words in (["train", "resume", f"model={last}"], ["train", f"resume={last}"]):
        assert cli.main([*words, f"teacher={files.teacher}"]) == 0
    assert started[0] == started[1]
    assert started[0]["resume"] is True and started[0]["model"] == str(last) and "data" not in started[0]


def test_an_interrupted_training_says_how_to_go_on(files, started, monkeypatch, capsys, tmp_path):
    from ultralytics import YOLO

    last = tmp_path / "last.pt"

    def interrupted(self: Any, trainer: Any, **overrides: Any) -> None:
        self.trainer = SimpleNamespace(last=last)
        raise KeyboardInterrupt

    monkeypatch.setattr(YOLO, "train", interrupted)
    words = command("train model={student} teacher={teacher} data={data}", files)
    assert cli.main(words) == 130
    assert "before a first epoch" in capsys.readouterr().err
    assert cli.main([*words, "teacher_epochs=5"]) == 130
    assert "the same command goes on where the teacher's run stopped" in capsys.readouterr().err
    last.touch()
    assert cli.main(words) == 130
    assert f"yolokd train resume model={last}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "begun", "code", "parts"),
    [
        (ValueError("device=9 is not there"), False, 2, ["yolokd: device=9 is not there"]),
        (ValueError("shapes differ"), True, 1, ["failed: ValueError: shapes differ", "YOLOKD_TRACEBACK=1"]),
        (UserError("pcd is zero"), True, 2, ["yolokd: pcd is zero"]),
        (RuntimeError("CUDA out of memory\nmore"), False, 1, ["failed: RuntimeError: CUDA out of memory\n"]),
        (OSError(errno.ENOSPC, "No space left on device"), True, 1, ["no space left on the disk"]),
        (
            ModuleNotFoundError("No module named 'lap'", name="lap"),
            False,
            1,
            ["failed: the package 'lap' is not installed"],
        ),
        (
            subprocess.CalledProcessError(3, ["python"]),
            False,
            1,
            ["failed: a process that was started ended with code 3"],
        ),
    ],
)
def test_errors_of_a_training_become_codes(error, begun, code, parts, files, monkeypatch, capsys, tmp_path):
    from ultralytics import YOLO

    monkeypatch.delenv("YOLOKD_TRACEBACK", raising=False)
    made = tmp_path / "runs" / "train"

    def fails(self: Any, trainer: Any, **overrides: Any) -> None:
        (made / "weights").mkdir(parents=True)
        self.trainer = SimpleNamespace(**({"train_time_start": 0.0} if begun else {}))
        raise error

    monkeypatch.setattr(YOLO, "train", fails)
    words = command("train model={student} teacher={teacher} data={data}", files)
    assert cli.main([*words, f"project={tmp_path / 'runs'}"]) == code
    said = capsys.readouterr().err
    assert all(part in said for part in parts) and "Traceback" not in said and len(said.splitlines()) <= 2
    assert made.exists() == (begun or code == 1)  # nothing is left of a run that did not begin for a mistake


def test_a_run_folder_that_was_there_before_is_kept(files, monkeypatch, tmp_path):
    from ultralytics import YOLO

    def fails(self: Any, trainer: Any, **overrides: Any) -> None:
        raise ValueError("no such device")

    monkeypatch.setattr(YOLO, "train", fails)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    words = command("train model={student} teacher={teacher} data={data} exist_ok name=mine", files)
    assert cli.main([*words, f"project={tmp_path / 'runs'}"]) == 2
    assert (tmp_path / "runs" / "mine").is_dir()


def test_the_traceback_is_shown_on_request(monkeypatch, capsys):
    monkeypatch.setenv("YOLOKD_TRACEBACK", "1")
    assert cli.main(["train", "kd_share=-1"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"), [(SystemExit(), 0), (SystemExit(3), 3), (SystemExit("no"), 1), (KeyboardInterrupt(), 130)]
)
def test_ends_of_the_process_become_codes(raised, code, monkeypatch):
    def stop(words: list[str]) -> int:
        raise raised

    monkeypatch.setitem(cli.MODES, "val", cli.Mode(stop, ""))
    assert cli.main(["val"]) == code


def test_the_hosts_modes_get_the_words_as_they_are_and_its_list_back(files, monkeypatch, tmp_path):
    import ultralytics.cfg as host

    before, seen = list(host.ARGV), []
    monkeypatch.setattr(host, "entrypoint", lambda: seen.append(list(host.ARGV)))
    source = str(tmp_path / "an image.jpg")
    for mode in ("val", "predict", "track", "benchmark"):
        assert cli.main([mode, f"model={files.student}", "source", "=", source, "half"]) == 0
    assert cli.main(["detect", "mode=predict", f"model={files.student}"]) == 0
    assert seen[1] == ["yolo", "predict", f"model={files.student}", "source", "=", source, "half"]
    assert [words[1] for words in seen[:4]] == ["val", "predict", "track", "benchmark"]
    assert seen[4] == ["yolo", "predict", "detect", f"model={files.student}"]
    (tmp_path / "best.onnx").write_bytes(b"of whatever kind; the host opens it")
    for words in (["predict", f"source={source}"], ["predict", f"model={tmp_path / 'best.onnx'}"]):
        assert cli.main(words) == 0
        assert seen[-1] == ["yolo", *words]
    assert host.ARGV == before


def test_classes_under_other_numbers_are_told(tmp_path: Path, tiny_data: Path, said: list[str]) -> None:
    turned = save_model(tiny_model(names=NAMES[::-1]), tmp_path / "turned.pt")
    assert (
        cli.main(f"val model={turned} data={tiny_data} imgsz=64 batch=4 device=cpu plots=False workers=0".split()) == 0
    )
    assert any("numbers classes otherwise" in line and NAMES[2] in line for line in said)
    said.clear()
    for names in (NAMES, NAMES[:2], ("a", "b", "c")):
        tell_other_numbers(str(save_model(tiny_model(names=names), tmp_path / f"{len(names)}{names[0]}.pt")), tiny_data)
    assert not [line for line in said if "numbers" in line]


def test_predict_runs(files, tmp_path, monkeypatch):
    image = next(path for path in (files.data.parent / "images").rglob("*.*"))
    words = command("predict model={student} imgsz=64 name=p", files)
    assert cli.main([*words, f"source={image}", f"project={tmp_path}"]) == 0
    assert (tmp_path / "p").is_dir()


@pytest.mark.parametrize(("parity", "code"), [(None, 0), (True, 0), (False, 1)])
def test_an_export_that_differs_is_a_failure(parity, code, files, monkeypatch, capsys):
    seen = []
    answer = None if parity is None else SimpleNamespace(ok=parity, summary=lambda: f"parity {parity}")

    def export_and_check(model: Any, overrides: dict[str, Any]) -> tuple[Path, Any]:
        seen.append((model.task, overrides))
        return Path("best.onnx"), answer

    fake = ModuleType("yolokd.export")
    fake.export_and_check = export_and_check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yolokd.export", fake)
    assert cli.main(command("export model={student} format=onnx half dynamic", files)) == code
    assert seen == [("detect", {"format": "onnx", "half": True, "dynamic": True})]
    printed = capsys.readouterr().out
    assert "best.onnx" in printed and (parity is None or f"parity {parity}" in printed)


def test_an_export_without_a_format_is_the_hosts_default(files, monkeypatch, capsys, said):
    seen = []
    fake = ModuleType("yolokd.export")
    fake.export_and_check = lambda model, overrides: (seen.append(overrides), (Path("x"), None))[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yolokd.export", fake)
    assert cli.main(command("export model={student}", files)) == 0
    assert seen == [{"format": "torchscript"}]
    assert any("'format' argument is missing" in message for message in said)


def test_demo_takes_its_parameters_as_keys(monkeypatch, capsys):
    import yolokd.command

    seen = []
    fake = ModuleType("yolokd.command.demo")

    def run_demo(epochs: int = 10, seed: int = 0, share: float = 0.5, quick: bool = False, folder: Any = None) -> int:
        seen.append((epochs, seed, share, quick, folder))
        return 0

    fake.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yolokd.command.demo", fake)
    monkeypatch.setattr(yolokd.command, "demo", fake, raising=False)
    assert cli.main(["demo", "epochs=3", "share=1", "quick", "folder=x y"]) == 0
    assert seen == [(3, 0, 1, True, "x y")]
    for words, part in ((["epoch=3"], "epochs=10"), (["epochs=x"], "epochs=x"), (["epochs=True"], "epochs=True")):
        assert cli.main(["demo", *words]) == 2
        assert part in capsys.readouterr().err


def test_short_modes(capsys):
    assert cli.main(["version"]) == 0 and cli.main(["--version"]) == 0
    assert capsys.readouterr().out.count(__version__) == 2
    assert cli.main([]) == 0 and cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {mode}" in text for mode in cli.MODES)
    assert cli.main(["cfg"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}:" in text and key.meaning in text for name, key in config.KEYS.items())
    assert not set(config.KEYS) & set(help_text({}).replace("=", " ").split()) - {"teacher", "method"}


@pytest.mark.parametrize("mode", list(cli.MODES))
def test_each_mode_has_a_help_of_its_own(mode, capsys):
    assert cli.main(["help", mode]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"yolokd {mode}: {cli.MODES[mode].text}")
    assert "takes no arguments" in text if mode not in GUIDES else f"e.g. yolokd {mode} " in text
    assert cli.main([mode, "--help"]) == cli.main(["-h", mode]) == 0
    assert capsys.readouterr().out == 2 * text


@pytest.mark.parametrize("mode, function", [("compare", compare), ("demo", run_demo), ("inspect", inspect_image)])
def test_the_help_has_each_argument_with_its_default(mode, function, capsys):
    assert cli.main(["help", mode]) == 0
    rows = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines() if "  " in line}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert len(rows[name].split()) > 2, name
            assert (
                name == "methods"
                or parameter.default in (None, parameter.empty)
                or str(parameter.default) in rows[name]
            )


def test_help_of_what_is_no_mode(capsys):
    assert cli.main(["help", "trian"]) == cli.main(["help", "train", "val"]) == 2
    assert "help knows no 'trian'; it takes one of train, compare" in capsys.readouterr().err


def test_an_unknown_key_of_the_demo_points_to_its_help(capsys):
    assert cli.main(["demo", "wxyz=1"]) == 2
    assert "see `yolokd help demo`" in capsys.readouterr().err


def test_methods_tells_of_each_what_is_ours(capsys):
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    for name, loss in LOSSES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert loss.paper in row and loss.signal in row
    assert "freekd (Zhang et al. 2024, arXiv 2311.12079)" in text and "not offered: the prompts need a training" in text
    assert "gdetkd = sgfi+ckd" in text and text.count("  ours: ") == len(LOSSES)
    parameters = {line.split()[0]: line.split()[2] for line in text.splitlines() if "arXiv" in line}
    # 1x1 convolutions: 64*128 + 128*256 + 256*512, without bias, which the standardisation would remove
    assert parameters["cwd"] == "172,032" and parameters["pcd"] == "0"


def test_checks(capsys, monkeypatch):
    assert cli.main(["checks"]) == 0
    text = capsys.readouterr().out
    assert "all is well" in text and "torchvision.ops.nms runs" in text and torch.__version__.split("+")[0] in text
    from yolokd.command import info

    monkeypatch.setattr(info, "installed", lambda name: {"onnx": None, "ultralytics": "8.3.0"}.get(name, "3.0"))
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: (_ for _ in ()).throw(RuntimeError("no operator nms")))
    assert cli.main(["checks"]) == 1
    text = capsys.readouterr().out
    for part in ("onnx is missing. Fix: pip install onnx", "8.3.0 is outside", "no operator nms", "--force-reinstall"):
        assert part in text


def test_the_light_modes_import_neither_torch_nor_the_host():
    code = (
        "import sys, yolokd; from yolokd import cli; "
        "assert [cli.main([m]) for m in ('version', 'help', 'cfg')] == [0, 0, 0]; "
        "assert not {'torch', 'ultralytics'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_python_m_yolokd_gives_the_code():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "yolokd", "trian"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and done.stderr.startswith("yolokd: 'trian'")


def test_a_closed_pipe_is_no_failure():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        f"{sys.executable} -m yolokd cfg | head -1", shell=True, capture_output=True, text=True, cwd=root
    )
    assert done.stdout.count("\n") == 1 and "failed" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "kd_class_map={{car: automobile, traffic light: light}}",
        "kd_class_map = {{car:automobile, traffic light:light}}",
        "kd_class_map={map}",
    ],
)
def test_a_class_map_is_read_with_and_without_quotes_and_from_a_file(text, files, started, tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("car: automobile\ntraffic light: light\n")
    given = [f"model={files.student}", f"teacher={files.teacher}", f"data={files.data}"]
    words = text.format(map=path)
    for split in (words.split(" "), [words.replace(" = ", "=")]):
        started.clear()
        assert cli.main(["train", *given, *split, "epochs=3"]) == 0
        assert started[0]["kd_class_map"] == {"car": "automobile", "traffic light": "light"}
        assert started[0]["epochs"] == 3


def test_weights_that_the_host_downloads_are_looked_at(files, monkeypatch, tmp_path):
    from ultralytics.utils import checks, downloads

    monkeypatch.chdir(tmp_path)
    fetched = {"good": str(files.student), "bad": str(files.root / "text.pt")}
    monkeypatch.setattr(checks, "check_file", lambda address, **_: fetched[address.rpartition("/")[2][:-3]])
    assert inputs.weights("teacher", "https://example.org/good.pt") == str(files.student)
    with pytest.raises(UserError, match="no PyTorch checkpoint"):
        inputs.weights("teacher", "https://example.org/bad.pt")
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda path: files.student)
    assert inputs.weights("teacher", "yolov8x.pt") == str(files.student)
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda path: tmp_path / "nothing.pt")
    with pytest.raises(UserError, match=r"could not be downloaded \(the download left no file"):
        inputs.weights("teacher", "yolov8x.pt")


def test_weights_in_the_form_that_torch_wrote_first_are_looked_into(tmp_path):
    torch.save({"model": None}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert inputs.weights("model", tmp_path / "old.pt") == str(tmp_path / "old.pt")


def test_a_package_that_is_not_installed_has_no_version():

    assert installed("no-such-package-at-all") is None and installed("torch")
