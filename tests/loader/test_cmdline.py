from __future__ import annotations

import pytest

from pyvmm_loader import (
    Cmdline,
    CmdlineError,
    HasEquals,
    HasSpace,
    InvalidAscii,
    InvalidCapacity,
    InvalidQuote,
    MissingVal,
    MmioSize,
    NoBootArgsInserted,
    NoQuoteSpace,
    TooLarge,
)
from pyvmm_loader.cmdline import quote, split_arguments


def test_inserting() -> None:
    line = Cmdline(200)
    line.insert("console", "ttyS0")
    line.insert_multiple("ip", ["10.0.0.2", "", "10.0.0.1"])
    line.insert_str("  quiet panic=-1 ")
    line.insert_str("  ")
    line.insert("dyndbg", '"file a +p"')
    line.insert_init_args(" one ")
    line.insert_init_args("two")
    line.insert_init_args("")
    text = 'console=ttyS0 ip=10.0.0.2,,10.0.0.1 quiet panic=-1 dyndbg="file a +p" -- one two'
    assert str(line) == text
    assert line.as_cstring() == text.encode() + b"\0"
    assert len(line) == len(text)
    assert Cmdline.try_from(text, 200) == line
    assert line != text
    assert "capacity=200" in repr(line)


@pytest.mark.parametrize(
    ("size", "text"), [(4096, "4K"), (1 << 20, "1M"), (3 << 30, "3G"), (4097, "4097"), (512, "512")]
)
def test_virtio_mmio_sizes(size: int, text: str) -> None:
    line = Cmdline(100)
    line.add_virtio_mmio_device(size, 0xD0000000, 5, 7)
    assert str(line) == f"virtio_mmio.device={text}@0xd0000000:5:7"


def test_capacity_counts_separators_and_nul() -> None:
    line = Cmdline(4)
    line.insert("a", "b")
    with pytest.raises(TooLarge, match="shorten"):
        line.insert_str("c")
    assert str(line) == "a=b"
    exact = Cmdline(6)
    exact.insert_str("a")
    exact.insert_str("b c")
    with pytest.raises(TooLarge):
        exact.insert_init_args("d")
    assert len(exact.as_cstring()) == 6
    with pytest.raises(InvalidCapacity):
        Cmdline(0)


def test_refusals_leave_the_line_alone() -> None:
    line = Cmdline(100)
    cases: list[tuple[tuple[str, str], type[CmdlineError]]] = [
        (("a b", "c"), HasSpace),
        (("a=b", "c"), HasEquals),
        (("a", "b c"), NoQuoteSpace),
        (("a", '"b" c"'), InvalidQuote),
        (("a", 'b"'), InvalidQuote),
        (("a", "\u00e9"), InvalidAscii),
        (("a\n", "b"), InvalidAscii),
        (("", "b"), MissingVal),
    ]
    for (key, value), error in cases:
        with pytest.raises(error):
            line.insert(key, value)
    with pytest.raises(MissingVal):
        line.insert_multiple("a", [])
    with pytest.raises(MmioSize):
        line.add_virtio_mmio_device(0, 0, 0)
    for size, base, irq, number in (
        (4096, -1, 5, None),
        (4096, 1 << 64, 5, None),
        (1 << 64, 4096, 5, None),
        (4096, 0, -5, None),
        (4096, 0, 1 << 32, None),
        (4096, 0, 5, -2),
        (4096, 0, 5, 1 << 32),
    ):
        with pytest.raises(CmdlineError):
            line.add_virtio_mmio_device(size, base, irq, number)
    assert str(line) == ""


def test_lines_are_equal_when_the_kernel_reads_the_same() -> None:
    parts, whole = Cmdline(100), Cmdline(50)
    parts.insert_str("a")
    parts.insert_init_args("b")
    whole.insert_str("a -- b")
    assert parts == whole == Cmdline.try_from("a -- b", 80)
    whole.insert_str("c")
    assert parts != whole


def test_upstream_try_from_validates_and_minds_quotes() -> None:
    with pytest.raises(InvalidAscii):
        Cmdline.try_from("a\0b", 100)
    line = Cmdline.try_from('a="x -- y"   --  z ', 100)
    assert str(line) == 'a="x -- y" -- z'
    only_init = Cmdline.try_from(" -- z", 100)
    with pytest.raises(NoBootArgsInserted):
        only_init.as_cstring()
    only_init.insert_str("a")
    assert bytes(only_init) == b"a -- z\0"
    with pytest.raises(TooLarge):
        Cmdline.try_from("abc", 3)
    with pytest.raises(InvalidCapacity):
        Cmdline.try_from("abc", 3)
    late = Cmdline(50)
    late.insert_init_args("z")
    with pytest.raises(NoBootArgsInserted):
        late.as_cstring()


@pytest.mark.parametrize(
    ("text", "boot", "init"),
    [
        ("hello=world foo=bar", "hello=world foo=bar", ""),
        ("hello=world --foo=bar -- arg1 --arg2", "hello=world --foo=bar", "arg1 --arg2"),
        ("arg1-- arg2 --arg3", "arg1-- arg2 --arg3", ""),
        ("--arg1-- -- arg2 -- --arg3", "--arg1--", "arg2 -- --arg3"),
        ('a="b -- c" d -- e ', 'a="b -- c" d', "e"),
        ('foo--bar=baz a="b -- c"', 'foo--bar=baz a="b -- c"', ""),
        (" \tquiet\n", "quiet", ""),
        ("quiet -- ", "quiet", ""),
        ("quiet --", "quiet --", ""),
        ("", "", ""),
    ],
)
def test_where_init_s_arguments_begin(text: str, boot: str, init: str) -> None:
    built = Cmdline(100)
    built.insert_str(boot + "\n")
    built.insert_init_args("\n" + init)
    taken = Cmdline.try_from(text, 60)
    assert taken == built, "a capacity is no part of what a line says"
    assert taken.as_cstring() == (f"{boot} -- {init}" if init else boot).encode() + b"\0"


def test_quote_is_undone_by_the_kernel_s_rules() -> None:
    line = Cmdline(200)
    values = {"root": "/dev/vda", "dyndbg": "file drivers/virtio/* +p", "empty": ""}
    for key, value in values.items():
        line.insert(key, quote(value))
    line.insert_str("quiet")
    line.insert_init_args("3")
    expected = [*values.items(), ("quiet", None), ("--", None), ("3", None)]
    assert split_arguments(str(line)) == expected
    with pytest.raises(InvalidQuote):
        quote('a "b"')
    with pytest.raises(InvalidAscii):
        quote("a\n")


def test_split_arguments_as_next_arg_does() -> None:
    # lib/cmdline.c: quotes around the whole argument, around the value, and none of the rest are special
    cases = {
        '"key=a b" c': [("key", "a b"), ("c", None)],
        'a="b=c"': [("a", "b=c")],
        '"two words"': [("two words", None)],
        "  a   b=1 ": [("a", None), ("b", "1")],
        'a=b"c d"': [("a", 'b"c d"')],
        "": [],
    }
    for text, expected in cases.items():
        assert split_arguments(text) == expected, text
