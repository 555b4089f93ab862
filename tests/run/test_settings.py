"""The readers' options of a dataset come back from the fields of its fingerprint."""

import dataclasses

import pytest

from clip_transforms import ClipSpec
from clip_transforms.run.settings import Settings, reader_options
from clip_transforms.shards.unit import ReaderOptions

DEFAULT = ReaderOptions()


@pytest.mark.parametrize(
    "options",
    [
        DEFAULT,
        ReaderOptions(captions="all", caption_column="a.b[0]", image_column="x y", key_column="k"),
        ReaderOptions(image_extension="seg.png", limit=7, max_image_bytes=1_000, max_caption_bytes=9),
    ],
    ids=["defaults", "columns", "limits"],
)
def test_options_come_back_from_the_fingerprint(options, tiny_checkpoint):
    settings = Settings(("a",), "out", ClipSpec.of(tiny_checkpoint), reader=options)
    assert reader_options(settings.fingerprint_fields(settings.resolve_checkpoint())) == options


def test_what_a_dataset_does_not_store_is_given_or_the_default(tiny_checkpoint):
    stored = ReaderOptions(input_format="parquet", exclude=("x",), allow_uri=("/secret",), columns=("a:int32",))
    settings = Settings(("a",), "out", ClipSpec.of(tiny_checkpoint), reader=stored)
    fields = settings.fingerprint_fields(settings.resolve_checkpoint())
    assert reader_options(fields) == DEFAULT
    assert reader_options(fields, ["/open"]) == dataclasses.replace(DEFAULT, allow_uri=("/open",))
