"""What runs beside a student on a GPU stays there: all of it on a device that refuses to meet what lies elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.elsewhere import elsewhere, values
from tests.tiny import NAMES, tiny_batch, tiny_criterion, tiny_model
from yolokd.evaluation.quick import quick_ap50
from yolokd.losses import LOSSES
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import select_weights

CLASSES = {index: index for index in range(len(NAMES))}


def test_what_is_left_on_the_cpu_is_found() -> None:
    with elsewhere() as device:
        there = torch.arange(4.0).to(device).requires_grad_()
        (there * torch.ones(4, device=device)).sum().backward()
        assert there.device == device and there.grad is not None and there.grad.device == device
        assert there.tolist() == [0, 1, 2, 3] and there[[2, 1]].tolist() == [2, 1] and float(there.detach()[3]) == 3
        assert there.new_tensor([1]).device == torch.tensor([1], device=device).device == device
        assert there.detach().cpu().numpy().sum() == 6 and (there + torch.tensor(1.0)).device == device
        for left in (lambda: there + torch.ones(4), lambda: torch.ones(4)[there.detach().long()]):
            with pytest.raises(RuntimeError, match="left on the CPU"):
                left()
        with pytest.raises(TypeError, match="copy it to the CPU"):
            there.detach().numpy()


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_a_step_with_all_methods_stays_on_its_device_and_equals_the_cpus(family: str) -> None:
    def step(model: Any, criterion: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, _ = model(batch)
        loss.sum().backward()
        grads = {name: values(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        return values(loss.detach()), {**grads, "gains": torch.tensor(list(criterion.calibration.gains.values()))}

    distributions = {"ld"} if family == "yolo26n" else set()  # it has none
    method, teacher = "+".join(name for name in LOSSES if name not in distributions), tiny_model(family, seed=2)
    options = {"kd_gain": "auto", "student": tiny_model(family, seed=1), "teacher": teacher}
    torch.manual_seed(0)
    loss, grads = step(*tiny_criterion(method, **copy.deepcopy(options)), tiny_batch())
    with elsewhere() as device:
        options["student"] = options["student"].to(device)
        torch.manual_seed(0)
        batch = {key: value.to(device) for key, value in tiny_batch().items()}
        found, others = step(*tiny_criterion(method, **options), batch)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others, grads, rtol=1e-3, atol=1e-3)


def test_the_start_and_the_look_before_stay_on_their_device() -> None:
    def chosen(name: str) -> bool:
        return name.startswith(("model.0.", "model.2.", "model.22.cv3.0."))

    batch = tiny_batch(images=4)
    teacher, student = tiny_model("yolov8n", seed=2), tiny_model("yolov8n", seed=1)
    select_weights(student, teacher, CLASSES)
    expected, on_cpu = copy.deepcopy(student), quick_ap50(teacher, [batch], CLASSES)
    explained = fit_weights(expected, teacher, batch["img"], CLASSES, chosen)
    with elsewhere() as device:
        student, teacher = student.to(device), teacher.to(device)
        select_weights(student, teacher, CLASSES)
        there = {key: value.to(device) for key, value in batch.items()}
        found = fit_weights(student, teacher, there["img"], CLASSES, chosen)
        assert quick_ap50(teacher, [there], CLASSES) == on_cpu
    assert len(found) == 8 and found == pytest.approx(explained, abs=1e-4)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(values(student.state_dict()[key]), value, rtol=1e-3, atol=1e-4)
