"""What the kernel reads in a bootconfig: the grammar of its parser, which refuses the whole text at the first mistake.

Keys are words with dots between; values follow ``=`` (a new one), ``+=`` (one more) or ``:=`` (another instead). A
brace opens a key for what is in it. The kernel parses at boot, where nobody hears of it but its log, so the same is
checked here. It goes by bytes, not characters, and by the character classes of Latin-1.

Source: Documentation/admin-guide/bootconfig.rst; lib/bootconfig.c of Linux for what that leaves open.
"""

from __future__ import annotations

import re

from pyvmm_loader.errors import InvalidHeader

MAX_NODES = 8192
"""XBC_NODE_MAX: so many words of keys, and values, has a tree at most."""
MAX_KEY = 256
"""XBC_KEYLEN_MAX: so long is a key with its dots and its end at most."""
MAX_DEPTH = 16
"""XBC_DEPTH_MAX: so many words has a key at most, and one fewer are the braces within each other."""

_SPACE = b"\t\n\v\f\r \xa0"
_WORD = re.compile(rb"[0-9A-Za-z_\-\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\xff]+")
_UNPRINTABLE = re.compile(rb"[^\t-\r -~\xa0-\xff]")
_AFTER_KEY = re.compile(rb"[{}=+;:\n#]")
_AFTER_VALUE = re.compile(rb"[,;\n#}]")


class _Key:
    """A word of a key: what has it in front, and whether it has a value."""

    __slots__ = ("parts", "valued")

    def __init__(self) -> None:
        self.parts: dict[bytes, _Key] = {}
        self.valued = False


class _Parser:
    """Reads a text from its beginning to its end."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        self.nodes = 0
        self.root = _Key()
        self.open = [self.root]

    def fail(self, what: str, at: int) -> InvalidHeader:
        """Return the error that says where a mistake is."""
        line = self.text.count(b"\n", 0, at) + 1
        return InvalidHeader(f"a bootconfig that the kernel refuses: {what}, line {line}", field="text", value=at)

    def add(self) -> None:
        """Count one more node."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fail(f"more than {MAX_NODES} words and values", self.at)

    def parse(self) -> None:
        """Read it all; raises InvalidHeader at the first mistake."""
        while found := _AFTER_KEY.search(self.text, self.at):
            begin, mark = self.at, found.group()
            words = self.text[begin : found.start()].strip(_SPACE)
            self.at = found.end()
            if mark in b"+:":
                if self.text[self.at : self.at + 1] != b"=":
                    raise self.fail(f"{mark.decode()!r} without '='", found.start())
                self.at += 1
            if mark in b"=+:":
                self.read_values(self.key(words, begin), mark)
            elif mark == b"{":
                self.open.append(self.key(words, begin))
                if len(self.open) > MAX_DEPTH:
                    raise self.fail(f"{MAX_DEPTH} braces within each other", found.start())
            else:
                if words:
                    self.key(words, begin)
                if mark == b"#":
                    self.skip_line()
                elif mark == b"}":
                    self.close(found.start())
        if self.text[self.at :].strip(_SPACE):
            raise self.fail("the last line has no end", self.at)
        if len(self.open) > 1:
            raise self.fail("a brace that is not closed", len(self.text))
        if not self.nodes:
            raise self.fail("it has no key", 0)
        self.measure(self.root, 0, 0)

    def key(self, words: bytes, at: int) -> _Key:
        """Return the key of this name in the brace that is open, which may be new."""
        key = self.open[-1]
        for word in words.split(b"."):
            if not _WORD.fullmatch(word):
                raise self.fail(f"{word.decode('utf-8', 'replace')!r} is no word of a key", at)
            if word not in key.parts:
                self.add()
                key.parts[word] = _Key()
            key = key.parts[word]
        return key

    def close(self, at: int) -> None:
        """Close a brace."""
        if len(self.open) == 1:
            raise self.fail("a closing brace, and none is open", at)
        self.open.pop()

    def read_values(self, key: _Key, mark: bytes) -> None:
        """Read the values of a key."""
        if key.valued and mark == b"=":
            raise self.fail("a key is given a value again: use += or :=", self.at)
        if not (key.valued and mark == b":"):
            self.add()
        key.valued = True
        while (end := self.read_value()) == b",":
            self.add()
        if end == b"}":
            self.close(self.at - 1)

    def read_value(self) -> bytes:
        """Read one value, and return what ends it: nothing at the end of the text."""
        text = self.text
        while True:
            self.at += len(text[self.at :]) - len(text[self.at :].lstrip(_SPACE))
            if text[self.at : self.at + 1] != b"#":
                break
            self.skip_line()
        quote = text[self.at : self.at + 1]
        if quote in (b'"', b"'"):
            end = text.find(quote, self.at + 1)
            if end < 0:
                raise self.fail("a quote that is not closed", self.at)
            self.check_printable(self.at, end)
            self.at = end + 1
            while text[self.at : self.at + 1].strip(_SPACE) == b"" and text[self.at : self.at + 1] not in (b"", b"\n"):
                self.at += 1
            found = _AFTER_VALUE.match(text, self.at)
            if not found and self.at < len(text):
                raise self.fail("something follows a quoted value", self.at)
        else:
            found = _AFTER_VALUE.search(text, self.at)
            self.check_printable(self.at, found.start() if found else len(text))
        if not found:
            self.at = len(text)
            return b""
        self.at = found.end()
        if found.group() == b"#":
            self.skip_line()
        return found.group()

    def check_printable(self, begin: int, end: int) -> None:
        """Refuse a value with control characters."""
        if found := _UNPRINTABLE.search(self.text, begin, end):
            raise self.fail(f"a value with {found.group()!r} in it", found.start())

    def skip_line(self) -> None:
        """Skip a comment."""
        self.at = self.text.find(b"\n", self.at) + 1 or len(self.text)

    def measure(self, key: _Key, depth: int, length: int) -> None:
        """Refuse keys that are too long; the kernel does not look at those below one with a value."""
        for word, part in key.parts.items():
            if length + len(word) + 1 > MAX_KEY:
                raise self.fail(f"a key of more than {MAX_KEY - 1} bytes", self.text.find(word))
            if depth == MAX_DEPTH:
                raise self.fail(f"a key of more than {MAX_DEPTH} words", self.text.find(word))
            if not part.valued:
                self.measure(part, depth + 1, length + len(word) + 1)


def check_bootconfig(text: bytes) -> None:
    r"""Raise InvalidHeader, with the line, where the kernel would refuse a bootconfig.

    >>> check_bootconfig(b"kernel { root = /dev/vda; quiet }\n")
    >>> check_bootconfig(b"kernel {\n root = /dev/vda\n")
    Traceback (most recent call last):
    pyvmm_loader.errors.InvalidHeader: a bootconfig that the kernel refuses: a brace that is not closed, line 3
    """
    _Parser(text).parse()
