"""The AttributeError of a misspelt name: it says which names are near."""

from __future__ import annotations

TYPE_CHECKING = False


def no_attribute(thing: object, name: str, names: tuple[str, ...] = ()) -> AttributeError:
    """Return the error for a name that `thing` has not, with those of `names`, or of all it has, that look alike."""
    from difflib import get_close_matches

    # of the type, for dir() of the thing itself would ask it for a __dict__
    known = names or tuple(each for each in dir(type(thing)) if not each.startswith("_"))
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names[:12])}" if names else ""
    text = f"{type(thing).__name__} has no attribute {name!r}"
    return AttributeError(f"{text}: {cure}" if cure else text, name=name, obj=thing)


class Exact:
    """A structure that has the attributes it has: any other name is an AttributeError that says which are near."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        try:
            object.__setattr__(self, name, value)
        except AttributeError:
            if hasattr(type(self), name):
                raise
            raise no_attribute(self, name) from None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            raise no_attribute(self, name)
