"""One hand: the same form of facade and of exceptions to lint in all packages, and the field's words."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from source import ROOT, modules

# paraphrases, and the word that the field has for them
PARAPHRASES = {
    r"once is enough": "idempotent",
    r"\bbe as new\b": "be reset",
    r"\bwhose\.": "say of which object",
}
NOQA = re.compile(r"# ?noqa(?P<codes>: [A-Z]+\d+(?:, [A-Z]+\d+)*)?(?P<why>.*)")


def lines(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield the lines of some files, each with where it is."""
    for path in sorted(paths):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_every_exception_to_lint_says_why() -> None:
    """An exception names its code, and after a dash its reason."""
    others = {".venv", "build", "_build"}
    paths = [path for path in ROOT.rglob("*.py") if not others & set(path.relative_to(ROOT).parts)]
    wrong = [
        f"{where}: {found[0]}"
        for where, line in lines(paths)
        if (found := NOQA.search(line)) and not (found["codes"] and re.fullmatch(r" - \S.*", found["why"]))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_fields_own_words() -> None:
    wrong = [
        f"{where}: {phrase} (say {word})"
        for where, line in lines(modules().values())
        for phrase, word in PARAPHRASES.items()
        if re.search(phrase, line)
    ]
    assert not wrong, "\n".join(wrong)
