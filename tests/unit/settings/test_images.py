"""The grammar of the image lists: what belongs to which path, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.settings.images import ImageSpec, Rate, parse_images
from vmm.settings.parse import BadValue


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("/a.img", [ImageSpec("/a.img")]),
        ("/a.img,/b.img", [ImageSpec("/a.img"), ImageSpec("/b.img")]),
        ("/a.img,format=raw", [ImageSpec("/a.img", "raw")]),
        ("/a,format=raw,/b", [ImageSpec("/a", "raw"), ImageSpec("/b")]),
        ("/a,/b,serial=root-1", [ImageSpec("/a"), ImageSpec("/b", None, "root-1")]),
        ("/a,serial=x,format=raw,/b,serial=y",
         [ImageSpec("/a", "raw", "x"), ImageSpec("/b", None, "y")]),
        ('"/a,format=raw"', [ImageSpec("/a,format=raw")]),
        ('"/a,b.img",format=raw', [ImageSpec("/a,b.img", "raw")]),
        ('/a,"format=raw"', [ImageSpec("/a"), ImageSpec("format=raw")]),
        ('/a,serial="x,y"', [ImageSpec("/a", None, "x,y")]),
        ("/a=1.img,/b=2.img", [ImageSpec("/a=1.img"), ImageSpec("/b=2.img")]),
        ("/a, format=raw", [ImageSpec("/a", "raw")]),
        ("disk=1.img", [ImageSpec("disk=1.img")]),
        ("/a,direct=on,/b,direct=off",
         [ImageSpec("/a", direct=True), ImageSpec("/b", direct=False)]),
        ("/a,iops=500,bandwidth=100M/100+1G",
         [ImageSpec("/a", iops=Rate(500), bandwidth=Rate(100 << 20, 100, 1 << 30))]),
        ("/a,queues=8,/b", [ImageSpec("/a", queues=8), ImageSpec("/b")]),
        ("/a,iops=1000+50000", [ImageSpec("/a", iops=Rate(1000, 1000, 50000))]),
        (f"/a,serial={'s' * 20}", [ImageSpec("/a", None, "s" * 20)]),
    ],
)  # fmt: skip
def test_what_belongs_to_which_path(text, images):
    assert list(parse_images(text)) == images


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("format=raw,/a", "belongs behind a path"),
        ("/a,frmat=raw", "did you mean format?"),
        ("/a,readonly=on", "unknown key 'readonly'"),
        ("/a,format=qcow2", "qemu-img convert"),
        ("/a,format=", "raw is the only one"),
        ("/a,format=raw,format=raw", "given twice for /a"),
        ("/a,serial=", "1 to 20"),
        (f"/a,serial={'s' * 21}", "1 to 20"),
        ("/a,serial=two words", "without blanks"),
        ("/a,serial=\u00e4", "ASCII"),
        ("/a,direct=maybe", "direct='maybe' is neither on nor off"),
        ("/a,direct=off,direct=off", "given twice for /a"),
        ("/a,queues=0", "queues='0' is not a whole number from 1 to 64"),
        ("/a,queues=65", "queues='65' is not a whole number from 1 to 64"),
        ("/a,queues=", "queues='' is not"),
        ("/a,queues=1,queues=1", "given twice for /a"),
        ("/a,iops=0", "iops=0: 1 to"),
        ("/a,iops=", "'' is not a size"),
        ("/a,iops=5/0", "not a whole number from 1 to"),
        ("/a,iops=5+", "the form is SIZE[/MS][+ONCE]"),
        ("/a,bandwidth=-1M", "is not a size"),
        ("/a,bandwidth=9999999T", "leave it out for no limit"),
        ("/a,bandwith=1M", "did you mean bandwidth?"),
        ("~/a,format=raw", "starts with '~'"),
        ("/a,,format=raw", "empty"),
    ],
)
def test_refusals(text, told):
    with pytest.raises(BadValue, match=None) as caught:
        parse_images(text)
    assert told in str(caught.value)
    assert text.startswith("format") or "belongs behind" not in str(caught.value)


def test_an_image_is_a_path():
    image = ImageSpec("/a.img", "raw", "x")
    assert os.fspath(image) == str(image) == "/a.img"


@given(st.text(max_size=60))
def test_any_text_is_a_list_or_refused(text):
    try:
        images = parse_images(text)
    except BadValue:
        return
    assert images
    assert all(image.path for image in images)


@pytest.mark.parametrize(
    "text",
    ["iops=\x1b", "/a,iops=5\x1b", "/a,iops=0\x1b", "/a,format=\x1b", "/a,serial=\x1b",
     "/\x1b,format=raw,format=raw", "/a,bandwidth=" + "9" * 400],
)  # fmt: skip
def test_a_refusal_can_be_shown_on_a_terminal(text):
    with pytest.raises(BadValue) as caught:
        parse_images(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
