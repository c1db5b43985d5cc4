"""CPUID policies: what a guest is told about its processor, from the host's offer to a fixed template."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from .cpuid import CpuId

# name: (leaf, subleaf, register, bit); Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E
FEATURES: dict[str, tuple[int, int, str, int]] = {
    "fpu": (1, 0, "edx", 0), "tsc": (1, 0, "edx", 4), "msr": (1, 0, "edx", 5), "pae": (1, 0, "edx", 6),
    "mce": (1, 0, "edx", 7), "cx8": (1, 0, "edx", 8), "apic": (1, 0, "edx", 9), "sep": (1, 0, "edx", 11),
    "mtrr": (1, 0, "edx", 12), "pge": (1, 0, "edx", 13), "mca": (1, 0, "edx", 14), "cmov": (1, 0, "edx", 15),
    "pat": (1, 0, "edx", 16), "pse36": (1, 0, "edx", 17), "clfsh": (1, 0, "edx", 19), "mmx": (1, 0, "edx", 23),
    "fxsr": (1, 0, "edx", 24), "sse": (1, 0, "edx", 25), "sse2": (1, 0, "edx", 26), "htt": (1, 0, "edx", 28),
    "sse3": (1, 0, "ecx", 0), "pclmulqdq": (1, 0, "ecx", 1), "monitor": (1, 0, "ecx", 3), "vmx": (1, 0, "ecx", 5),
    "ssse3": (1, 0, "ecx", 9), "fma": (1, 0, "ecx", 12), "cx16": (1, 0, "ecx", 13), "pcid": (1, 0, "ecx", 17),
    "sse4_1": (1, 0, "ecx", 19), "sse4_2": (1, 0, "ecx", 20), "x2apic": (1, 0, "ecx", 21),
    "movbe": (1, 0, "ecx", 22), "popcnt": (1, 0, "ecx", 23), "tsc_deadline": (1, 0, "ecx", 24),
    "aes": (1, 0, "ecx", 25), "xsave": (1, 0, "ecx", 26), "osxsave": (1, 0, "ecx", 27), "avx": (1, 0, "ecx", 28),
    "f16c": (1, 0, "ecx", 29), "rdrand": (1, 0, "ecx", 30), "hypervisor": (1, 0, "ecx", 31),
    "fsgsbase": (7, 0, "ebx", 0), "tsc_adjust": (7, 0, "ebx", 1), "bmi1": (7, 0, "ebx", 3), "hle": (7, 0, "ebx", 4),
    "avx2": (7, 0, "ebx", 5), "smep": (7, 0, "ebx", 7), "bmi2": (7, 0, "ebx", 8), "erms": (7, 0, "ebx", 9),
    "invpcid": (7, 0, "ebx", 10), "rtm": (7, 0, "ebx", 11), "avx512f": (7, 0, "ebx", 16), "rdseed": (7, 0, "ebx", 18),
    "adx": (7, 0, "ebx", 19), "smap": (7, 0, "ebx", 20), "clflushopt": (7, 0, "ebx", 23), "sha": (7, 0, "ebx", 29),
    "umip": (7, 0, "ecx", 2), "pku": (7, 0, "ecx", 3), "la57": (7, 0, "ecx", 16), "rdpid": (7, 0, "ecx", 22),
    "fsrm": (7, 0, "edx", 4), "arch_capabilities": (7, 0, "edx", 29), "spec_ctrl": (7, 0, "edx", 26),
    "syscall": (0x80000001, 0, "edx", 11), "nx": (0x80000001, 0, "edx", 20), "pdpe1gb": (0x80000001, 0, "edx", 26),
    "rdtscp": (0x80000001, 0, "edx", 27), "lm": (0x80000001, 0, "edx", 29), "lahf_lm": (0x80000001, 0, "ecx", 0),
    "svm": (0x80000001, 0, "ecx", 2),
}  # fmt: skip

# the x86-64 baseline (psABI x86-64-v1) with what a kernel needs beside it
BASELINE = (
    "fpu tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse sse2 syscall nx lm hypervisor "
    "x2apic tsc_deadline"
).split()
# x86-64-v2 and v3 of the same document
LEVEL_2 = [*BASELINE, "cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"]
LEVEL_3 = [*LEVEL_2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave", "osxsave"]
TEMPLATES = {"x86-64-v1": BASELINE, "x86-64-v2": LEVEL_2, "x86-64-v3": LEVEL_3}


class CpuidPolicy:
    """Edits a copy of the host's table; each method returns the policy, `table(vcpu_id)` the result for one vCPU.

    >>> from pyvmm_kvm import CpuId, CpuIdEntry
    >>> host = CpuId([CpuIdEntry(1, ecx=1 << 23 | 1 << 31, edx=1)])
    >>> policy = CpuidPolicy(host).without("popcnt")
    >>> policy.features()
    ['fpu', 'hypervisor']
    """

    def __init__(self, host: CpuId) -> None:
        self._table = host.copy()

    def without(self, *features: str) -> Self:
        """Hide features by name (`FEATURES`)."""
        for name in features:
            self._change(name, False)
        return self

    def with_(self, *features: str) -> Self:
        """Show features, whether or not the host offered them."""
        for name in features:
            self._change(name, True)
        return self

    def template(self, name: str) -> Self:
        """Keep only the features of a template ("x86-64-v1" to "x86-64-v3") that the host has too."""
        keep = set(TEMPLATES[name])
        return self.without(*(feature for feature in self.features() if feature not in keep))

    def vendor(self, name: str) -> Self:
        """Replace the 12-character vendor string, such as "GenuineIntel" or "AuthenticAMD"."""
        raw = name.encode("ascii")
        if len(raw) != 12:
            raise ValueError(f"a vendor string has 12 characters, not {len(raw)}")
        ebx, edx, ecx = (int.from_bytes(raw[at : at + 4], "little") for at in (0, 4, 8))
        self._table.set(0, ebx=ebx, ecx=ecx, edx=edx)
        return self

    def drop_leaves(self, leaves: Iterable[int]) -> Self:
        """Remove whole leaves."""
        gone = set(leaves)
        self._table.retain(lambda entry: entry.function not in gone)
        return self

    def features(self) -> list[str]:
        """The names of the features shown now, in alphabetical order."""
        shown = []
        for name, (leaf, index, register, bit) in FEATURES.items():
            entry = self._table.find(leaf, index)
            if entry is not None and getattr(entry, register) >> bit & 1:
                shown.append(name)
        return sorted(shown)

    def table(self, vcpu_id: int = 0, vcpus: int = 1) -> CpuId:
        """The table for one vCPU: its APIC id in leaves 1, 0xb and 0x1f, the number of logical processors in leaf 1."""
        table = self._table.copy()
        for entry in table:
            if entry.function == 1:
                entry.ebx = entry.ebx & 0xFFFF | (min(vcpus, 255) << 16) | (vcpu_id & 0xFF) << 24
            elif entry.function in (0xB, 0x1F):
                entry.edx = vcpu_id
        return table

    def _change(self, name: str, shown: bool) -> None:
        if name not in FEATURES:
            raise ValueError(f"no CPUID feature is called {name!r} here; FEATURES lists {len(FEATURES)} names")
        leaf, index, register, bit = FEATURES[name]
        entry = self._table.find(leaf, index) or (self._table.set(leaf, index) if shown else None)
        if entry is not None:
            value = getattr(entry, register)
            setattr(entry, register, value | 1 << bit if shown else value & ~(1 << bit))


__all__ = ["BASELINE", "FEATURES", "TEMPLATES", "CpuidPolicy"]
