"""The AttributeError of a misspelt name: it says which names are near."""

from __future__ import annotations


def no_attribute(thing: object, name: str, names: tuple[str, ...] = ()) -> AttributeError:
    """Return the error for a name that `thing` has not, with those of `names`, or of all it has, that look alike."""
    from difflib import get_close_matches

    known = names or tuple(each for each in dir(thing) if not each.startswith("_"))
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names[:12])}" if names else ""
    text = f"{type(thing).__name__} has no attribute {name!r}"
    return AttributeError(f"{text}: {cure}" if cure else text, name=name, obj=thing)
