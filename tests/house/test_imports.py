"""The arrows between modules: which package may know which, and no circles but the few that are one idea in two files.

Imports inside functions count, for they are arrows too; those that only a type checker sees do not.
"""

from source import PACKAGES, circles, graph, modules

# package -> the packages of ours that it may import; design: arrows only point down
MAY_IMPORT: dict[str, set[str]] = {
    "pyvmm_kvm": set(),
    "pyvmm_memory": set(),
    "pyvmm_loader": set(),
    "pyvmm_device": set(),
    "pyvmm_virtio": {"pyvmm_memory", "pyvmm_device"},
}
# circles that stay, each one owner and its part
CIRCLES = [
    {
        "pyvmm_loader.acpi.aml.data",
        "pyvmm_loader.acpi.aml.term",
    },  # a term holds terms, and integers are written as data
]


def test_packages_import_only_downwards() -> None:
    assert set(PACKAGES) == set(MAY_IMPORT)
    up = {
        (name, other)
        for name, others in graph().items()
        for other in others
        if (here := name.partition(".")[0]) != (there := other.partition(".")[0]) and there not in MAY_IMPORT[here]
    }
    assert not up


def test_circles_are_known_by_name() -> None:
    found = [members for members in circles() if members not in CIRCLES]
    assert not found, "modules that import each other: hand a value in, or move the shared name down"
    assert [members for members in CIRCLES if members not in circles()] == [], (
        "this one is gone: strike it from the list"
    )


def test_no_module_imports_its_own_facade() -> None:
    """What a package hands on is for others: inside, each name comes from where it stands."""
    facades = {name for name, path in modules().items() if path.name == "__init__.py"}
    wrong = {
        (name, other) for name, others in graph().items() for other in others & facades if name.startswith(f"{other}.")
    }
    assert not wrong
