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

    Place = tuple[str, ...]

PREDEFINED = ("_GPE", "_PR_", "_SB_", "_SI_", "_TZ_", "_GL_", "_OS_", "_OSI", "_REV")


def resolve(place: Place, name: str) -> Place:
    """Return where a name that is declared at a place belongs; raises AmlError above the root."""
    rest = name.lstrip("^")
    up = len(name) - len(rest)
    if not up and rest.startswith("\\"):
        place, rest = (), rest[1:]
    if up > len(place):
        raise AmlError(f"{name!r} leads above the root", name=name)
    place = place[: len(place) - up]
    return place + tuple([part.ljust(4, "_") for part in rest.split(".")]) if rest else place


def check_names(terms: Iterable[Term]) -> None:
    """Raise AmlError where terms declare a name twice."""
    taken: set[Place] = {(name,) for name in PREDEFINED}
    pending: list[tuple[Place, Term]] = [((), term) for term in terms]
    while pending:
        place, term = pending.pop()
        for name in term.declares:
            found = resolve(place, name)
            if found in taken:
                raise AmlError(f"\\{'.'.join(found)} is declared twice; give one of them another name", name=name)
            taken.add(found)
        if term.inside:
            within = resolve(place, getattr(term, "name", ""))
            pending.extend([(within, inner) for inner in term.inside if isinstance(inner, Term)])
