"""Which names a table declares, that it declares none twice, and that what is in it may be where it is.

Linux takes AML a table at a time: where a name is there already, the rest of the table is lost (AE_ALREADY_EXISTS), and
so it is where a Scope names a place that is not there (AE_NOT_FOUND).

Source: ACPI 6.5, 5.3 (namespace) and 5.3.1 (predefined root namespaces); Linux drivers/acpi/acpica/nsload.c.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.term import AmlError, Term

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PREDEFINED = ("_GPE", "_PR_", "_SB_", "_SI_", "_TZ_", "_GL_", "_OS_", "_OSI", "_REV")
ROOT = "\\"


def resolve(place: str, name: str) -> str:
    r"""Return where a name that is declared at a place belongs; raises AmlError above the root.

    >>> resolve("\\._SB_.DEV0", "^A")
    '\\._SB_.A___'
    """
    rest = name.lstrip("^")
    for _ in range(len(name) - len(rest)):
        if place == ROOT:
            raise AmlError(f"{name!r} leads above the root", name=name)
        place = place.rpartition(".")[0]
    if rest == name and rest.startswith("\\"):
        place, rest = ROOT, rest[1:]
    return ".".join([place, *[part.ljust(4, "_") for part in rest.split(".")]]) if rest else place


def check_names(terms: Iterable[Term], *, alone: bool = False) -> None:
    """Raise AmlError where terms declare a name twice, or where one stands that cannot be there.

    Args:
        terms: of a whole table.
        alone: whether there is no table before it that a `Scope` could find its place in: it is the DSDT.
    """
    taken = {f"{ROOT}.{name}" for name in PREDEFINED} | {ROOT}
    # what is declared first is known first: a Scope finds no place that is declared behind it
    pending = [(ROOT, term, False) for term in reversed(list(terms))]
    while pending:
        place, term, looping = pending.pop()
        found = place
        for name in term.declares:
            # most are one name in the place where they stand
            found = f"{place}.{name}" if len(name) == 4 and name.isidentifier() else resolve(place, name)
            if found in taken:
                raise AmlError(f"{found} is declared twice; give one of them another name", name=name)
            taken.add(found)
        if term.loops and not looping:
            raise AmlError(f"{term!r} is in no While; put it into one")
        if term.inside:
            name = getattr(term, "name", "")
            within = found if term.declares else resolve(place, name)
            if alone and within not in taken and not _is_above(place, name, taken):
                raise AmlError(f"there is no {within} yet for what is to be put there; declare it before", name=name)
            looping = looping or type(term).__name__ == "While"
            inner = [each for each in term.inside if each.declares or each.inside or each.loops]
            pending.extend([(within, each, looping) for each in reversed(inner)])


def _is_above(place: str, name: str, taken: set[str]) -> bool:
    """Say whether a name without a path is found in one of the places around: ACPI 6.5, 5.3."""
    if not name or not name.replace("_", "A").isalnum():
        return False
    while place:
        if resolve(place, name) in taken:
            return True
        place = place.rpartition(".")[0]
    return False
