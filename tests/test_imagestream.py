"""The hash of the image stream: equal for equal batches, different for anything else, and resumable."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from yolokd.compare.imagestream import StreamHash


def batch(seed: int, objects: int = 3) -> dict[str, Any]:
    """Return one batch as the data loader gives it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "batch_idx": torch.zeros(objects),
        "cls": torch.randint(0, 5, (objects, 1), generator=generator).float(),
        "bboxes": torch.rand(objects, 4, generator=generator),
        "im_file": [f"{seed}.png", "b.png"],
    }


def digest(*batches: dict[str, Any]) -> str:
    """Return the digest of a stream."""
    stream = StreamHash()
    for b in batches:
        stream.update(b)
    stream.close()
    return stream.hexdigest()


def test_equal_streams_have_equal_digests() -> None:
    assert digest(batch(0), batch(1)) == digest(batch(0), batch(1))
    assert len(digest(batch(0))) == 32 and digest() != digest(batch(0))


def test_where_the_files_lie_does_not_matter() -> None:
    assert digest({**batch(0), "im_file": ["elsewhere/0.png", "b.png"]}) == digest(batch(0))


@pytest.mark.parametrize("key", ["img", "batch_idx", "cls", "bboxes"])
def test_one_changed_value_changes_the_digest(key: str) -> None:
    changed = batch(0)
    changed[key].view(-1)[-1] += 1
    assert digest(changed) != digest(batch(0))


@pytest.mark.parametrize(
    "other",
    [
        (batch(1), batch(0)),  # order
        (batch(0),),  # length
        (batch(0), batch(1), batch(1)),
        (batch(0), {**batch(1), "img": batch(1)["img"].reshape(3, 2, 8, 8)}),  # shape
        (batch(0), {**batch(1), "img": batch(1)["img"].float()}),  # type
        (batch(0), {**batch(1), "img": batch(1)["img"].flip(0)}),  # images of a batch swapped
        (batch(0), {k: v for k, v in batch(1).items() if k != "cls"}),  # a tensor missing
        (batch(0), batch(1, objects=0)),
    ],
)
def test_other_streams_have_other_digests(other: tuple[dict[str, Any], ...]) -> None:
    assert digest(*other) != digest(batch(0), batch(1))


def test_memory_layout_does_not_matter() -> None:
    strided = {**batch(0), "img": batch(0)["img"].to(memory_format=torch.channels_last)}
    assert not strided["img"].is_contiguous() and digest(strided) == digest(batch(0))


def test_resumed_stream_goes_on() -> None:
    first = StreamHash()
    first.update(batch(0))
    second = StreamHash()
    second.load(first.state())
    second.update(batch(1))
    assert second.hexdigest() == digest(batch(0), batch(1)) and second.batches == 2
    assert all(isinstance(value, (str, int)) for value in first.state().values())


def test_copies_are_independent() -> None:
    stream = StreamHash()
    stream.update(batch(0))
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        other.update(batch(1))
        assert other.hexdigest() == digest(batch(0), batch(1))
    assert stream.hexdigest() == digest(batch(0))


def test_labels_may_change_after_the_update() -> None:
    stream, b = StreamHash(), batch(0)
    stream.update(b)
    b["bboxes"].mul_(2)
    b["cls"].zero_()
    assert stream.hexdigest() == digest(batch(0))


def test_batch_without_images_is_refused() -> None:
    with pytest.raises(KeyError, match="img"):
        StreamHash().update({"cls": torch.zeros(1, 1)})
