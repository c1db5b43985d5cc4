"""Which names a table declares, and that it declares none twice.

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


def check_names(terms: Iterable[Term]) -> None:
    """Raise AmlError where terms declare a name twice."""
    taken = {f"{ROOT}.{name}" for name in PREDEFINED}
    pending = [(ROOT, term) for term in terms]
    while pending:
        place, term = pending.pop()
        found = place
        for name in term.declares:
            # most are one name in the place where they stand
            found = f"{place}.{name}" if len(name) == 4 and name.isidentifier() else resolve(place, name)
            if found in taken:
                raise AmlError(f"{found} is declared twice; give one of them another name", name=name)
            taken.add(found)
        if term.inside:
            within = found if term.declares else resolve(place, getattr(term, "name", ""))
            pending.extend([(within, inner) for inner in term.inside if inner.declares or inner.inside])
