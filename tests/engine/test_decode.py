"""Decoding ahead keeps the order, bounds its memory, and passes errors on."""

import errno
import io
import os
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT, picture
from PIL import Image

from clip_transforms.clip.plain_jpeg import PlainJpeg
from clip_transforms.clip.preprocess import Preprocessing, decode, decode_image
from clip_transforms.engine import decode as decode_module
from clip_transforms.engine.caller import Caller
from clip_transforms.engine.ceiling import Ceiling
from clip_transforms.engine.decode import DecodeAhead, DecodedBatch
from schemas.samples import samples_schema


def batch(first, count, images=None, captions=None):
    rows = [
        {
            "key": str(i),
            "row": i,
            "image": picture(i) if images is None else images[i - first],
            "caption": f"number {i}" if captions is None else captions[i - first],
        }
        for i in range(first, first + count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=samples_schema())


def measured():
    ceiling = Ceiling()
    ceiling.measuring = False
    return ceiling


def decoded(stream, threads=3, ceiling=None):
    return list(DecodeAhead(stream, Preprocessing(32), ceiling or measured(), threads))


def test_batches_and_marks_come_out_in_the_order_they_went_in():
    stream = [(0, batch(0, 5)), "end of 0", (1, batch(5, 3)), "end of 1"]
    out = decoded(stream)
    assert [item.unit if isinstance(item, DecodedBatch) else item for item in out] == [0, "end of 0", 1, "end of 1"]
    np.testing.assert_array_equal(out[0].pixels, np.stack([decode_image(picture(i), 32) for i in range(5)]))
    assert out[0].sizes == [(40, 30)] * 5 and out[2].tokens.lengths.tolist() == [4] * 3


def test_an_undecodable_image_is_a_reject_and_moves_no_other_row():
    images = [picture(0), b"broken", None, picture(3)]
    (out,) = decoded([(0, batch(0, 4, images, ["a", None, "b", "c"]))])
    assert out.image_rows == [0, 3] and out.caption_rows == [0, 2, 3]
    np.testing.assert_array_equal(out.pixels[1], decode_image(picture(3), 32))
    assert [(row, reason, size) for row, reason, _, size in out.rejects] == [(1, "unknown format", 6)]
    assert [bool(digest) for digest in out.sha256] == [True, True, False, True]


def oriented(seed, orientation):
    image, exif, buffer = Image.open(io.BytesIO(picture(seed))), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def deep():
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["ignore", "apply"])
def test_images_that_are_not_as_a_person_sees_them_are_counted(how):
    images = [oriented(0, 6), picture(1), oriented(2, 1), deep(), oriented(4, 3), b"broken", None]
    preprocessing = Preprocessing(32, exif_orientation=how)
    (out,) = DecodeAhead([(0, batch(0, 7, images))], preprocessing, measured(), 2)
    found = {text.split(",")[0]: count for text, count in out.notes.items()}
    turned = {"images with an EXIF orientation": 2} if how == "ignore" else {}
    assert found == turned | {"images of 16 bits or of floats per channel": 1}
    assert out.sizes == [(40, 30)] * 5
    np.testing.assert_array_equal(out.pixels[0], decode(images[0], preprocessing).pixels)


def test_usual_images_give_no_note():
    (out,) = decoded([(0, batch(0, 3))])
    assert out.notes == {}


def test_an_error_of_the_reader_reaches_the_consumer_after_the_batches_before_it():
    def stream():
        yield 0, batch(0, 2)
        raise OSError("the disk is gone")

    out = DecodeAhead(stream(), Preprocessing(32), measured(), 2)
    iterator = iter(out)
    assert next(iterator).unit == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)


def test_an_error_in_a_decode_thread_reaches_the_consumer(monkeypatch):
    monkeypatch.setattr(decode_module, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoded([(0, batch(0, 2))])


@pytest.mark.parametrize(
    "fault",
    [MemoryError("no room"), pa.lib.ArrowMemoryError("no room"), OSError(errno.EMFILE, os.strerror(errno.EMFILE))],
    ids=repr,
)
def test_a_fault_of_the_machine_in_a_decoder_reaches_the_consumer(fault, monkeypatch):
    loads, original = [], PlainJpeg.load

    def failing(image):
        loads.append(image)
        if len(loads) == 3:
            raise fault
        return original(image)

    monkeypatch.setattr(PlainJpeg, "load", failing)
    with pytest.raises(type(fault)) as caught:
        decoded([(0, batch(0, 5))], threads=1)
    assert caught.value is fault


@pytest.mark.parametrize("stage", ["read", "decode"])
def test_a_thread_that_cannot_be_started_is_an_error_for_the_consumer(stage, monkeypatch):
    original = threading.Thread.start

    def failing(thread):
        if thread.name.startswith(stage):
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        decoded([(0, batch(0, 5))])


# Root may start any number of threads, so the limit only works for another user.
WITHOUT_THREADS = """
import os, resource, sys
from clip_transforms.clip.preprocess import decode_image
from clip_transforms.clip.decoders import set_up_decoders
set_up_decoders()
data = open(sys.argv[1], "rb").read()
if os.getuid() == 0:
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
print(decode_image(data, 32).shape)
"""


def test_an_avif_needs_no_thread_of_its_own(tmp_path):
    """Its decoder would start a thread per core, and report a damaged picture if that fails."""
    (tmp_path / "picture.avif").write_bytes(picture(0, (300, 200), "AVIF"))
    argv = [sys.executable, "-c", WITHOUT_THREADS, str(tmp_path / "picture.avif")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "(3, 32, 32)\n", done.stderr


def test_batches_that_wait_for_the_model_are_bounded_in_bytes(monkeypatch):
    one = batch(0, 2)
    size = one.nbytes + 2 * 3 * 32 * 32
    monkeypatch.setattr(decode_module, "MAX_AHEAD_BYTES", 3 * size)
    read = []

    def stream():
        for i in range(20):
            read.append(i)
            yield 0, one

    iterator = iter(DecodeAhead(stream(), Preprocessing(32), measured(), 2))
    for taken in range(1, 6):
        next(iterator)
        settle()
        assert len(read) <= taken + 3 + 1  # three wait, and the reader holds one
    iterator.close()


def settle():
    threading.Event().wait(0.1)


def test_while_the_ceiling_is_measured_nothing_is_decoded_beside_the_model():
    ceiling, done = Ceiling(), Counter()
    original = decode_module._decode_into

    def counting(*args):
        done["images"] += 1
        return original(*args)

    decode_module._decode_into = counting
    try:
        iterator = iter(DecodeAhead([(0, batch(2 * i, 2)) for i in range(9)], Preprocessing(32), ceiling, 2))
        for taken in range(1, 4):
            next(iterator)
            settle()
            assert done["images"] == 2 * taken
        ceiling.measuring = False
        next(iterator)
        settle()
        assert done["images"] == 18
        assert len(list(iterator)) == 5
    finally:
        decode_module._decode_into = original


def test_leaving_early_leaves_no_thread():
    before = set(threading.enumerate())
    iterator = iter(DecodeAhead(((0, batch(i, 2)) for i in range(1000)), Preprocessing(32), measured(), 2))
    next(iterator)
    iterator.close()
    settle()
    assert set(threading.enumerate()) <= before


def test_the_ceiling_warms_up_once_and_needs_five_batches_or_two_seconds():
    ceiling = Ceiling()
    ceiling.add(32, 32, 100.0)  # the warm-up
    for _ in range(4):
        ceiling.add(32, 32, 0.25)
    ceiling.add_captions(10, 0.0)
    assert ceiling.measuring and ceiling.rate is None
    ceiling.add(32, 32, 0.25)
    assert not ceiling.measuring and ceiling.rate == 128
    ceiling.add(1, 1, 100.0)
    assert ceiling.rate == 128
    slow = Ceiling()
    slow.add(32, 32, 1.0)
    slow.add(32, 32, 2.0)
    assert slow.rate is None, "no captions were counted yet, not even zero"
    slow.add_captions(64, 4.0)
    assert slow.rate == 8, "1/16 s for the picture and 1/16 s for the caption"
    slow.add_captions(64, 12.0)
    assert slow.rate == 1 / (1 / 16 + 1 / 8)


def test_pixels_for_a_gpu_lie_in_pinned_memory(monkeypatch):
    made, original = [], torch.empty

    def empty(*args, pin_memory=False, **more):
        made.append(pin_memory)  # pinned memory needs a GPU, which may be missing here
        return original(*args, **more)

    monkeypatch.setattr(torch, "empty", empty)
    for pinned in (False, True):
        caller = Caller(type("Model", (), {"device": torch.device("cpu")}))
        caller.gpu = caller if pinned else None
        (out,) = DecodeAhead([(0, batch(0, 2))], Preprocessing(32), measured(), 2, room=caller.room)
        np.testing.assert_array_equal(out.pixels[1], decode_image(picture(1), 32))
        assert made == [True] * pinned


def test_a_ceiling_counts_samples_with_and_without_pictures():
    ceiling = Ceiling()
    for _ in range(6):
        ceiling.add(32, 0, 0.001)
    ceiling.add_captions(192, 19.2)
    assert not ceiling.measuring and ceiling.rate is None, "the time for pictures was not measured"
    ceiling.add(32, 32, 1.0)
    assert ceiling.rate is None, "it is too late to measure: other batches are being decoded"
    some = Ceiling()
    for pictures in (32, 32, 32, 32, 32, 32, 0, 0, 0, 0, 0, 0):
        some.add(32, pictures, 3.2 * bool(pictures))
    some.add_captions(384, 38.4)
    assert some.rate == pytest.approx(1 / (0.1 + 0.1 / 2)), "half of the samples have one"
