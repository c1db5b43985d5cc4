"""CPUID policies: what a guest is told about its processor, from the host's offer to a fixed template."""

from __future__ import annotations

from pyvmm_kvm.x86_64 import topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from pyvmm_kvm.system import Kvm
    from pyvmm_kvm.x86_64.cpuid import CpuId

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
# x86-64-v2 to v4 of the same document, as far as FEATURES names their parts
LEVEL_2 = [*BASELINE, "cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"]
LEVEL_3 = [*LEVEL_2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave", "osxsave"]
LEVEL_4 = [*LEVEL_3, "avx512f"]


class Template:
    """What a guest's processor is called and what it shows: data for `CpuidPolicy.template`.

    `vendor` and `signature` (leaf 1 EAX: family, model, stepping) are the host's where they are None.
    """

    __slots__ = ("features", "signature", "vendor")

    def __init__(self, features: Iterable[str], vendor: str | None = None, signature: int | None = None) -> None:
        self.features = frozenset(features)
        self.vendor = vendor
        self.signature = signature

    def __repr__(self) -> str:
        who = f"{self.vendor} {self.signature:#x}, " if self.vendor and self.signature is not None else ""
        return f"<Template {who}{len(self.features)} features>"


# signatures: Intel SDM volume 4, table 2-1 (06_3AH Ivy Bridge, 06_3CH Haswell, 06_55H Skylake server);
# AMD family 15h model 2 and family 17h models 1 and 31h
TEMPLATES: dict[str, Template] = {
    "x86-64-v1": Template(BASELINE),
    "x86-64-v2": Template(LEVEL_2),
    "x86-64-v3": Template(LEVEL_3),
    "x86-64-v4": Template(LEVEL_4),
    "intel-v2": Template([*LEVEL_2, "rdtscp", "fsgsbase", "erms", "smep"], "GenuineIntel", 0x306A9),
    "intel-v3": Template([*LEVEL_3, "rdtscp", "fsgsbase", "erms", "smep", "invpcid", "pcid"], "GenuineIntel", 0x306C3),
    "intel-v4": Template([*LEVEL_4, "rdtscp", "fsgsbase", "erms", "smep", "smap", "adx"], "GenuineIntel", 0x50654),
    "amd-v2": Template([*LEVEL_2, "rdtscp"], "AuthenticAMD", 0x600F20),
    "amd-v3": Template([*LEVEL_3, "rdtscp", "fsgsbase", "smep", "smap", "adx", "sha"], "AuthenticAMD", 0x800F12),
}
_KVM_FEATURES, _PV_UNHALT = 0x40000001, 1 << 7
_FDP_EXCPTN_ONLY, _ZERO_FCS_FDS = 1 << 6, 1 << 13
# of `Cap`, which a boot does not import
_CAP_TSC_DEADLINE_TIMER = 72
# leaves that only one vendor's processors have
_ONLY_INTEL = frozenset({2, 4, 0xA, 0x14, 0x16})
_ONLY_AMD = frozenset({0x80000005, 0x8000000A, *range(0x80000019, 0x80000023)})


class CpuidPolicy:
    """Edits a copy of the host's table; each method returns the policy, `table(vcpu_id)` the result for one vCPU.

    >>> from pyvmm_kvm import CpuId, CpuIdEntry
    >>> host = CpuId([CpuIdEntry(1, ecx=1 << 23 | 1 << 31, edx=1)])
    >>> policy = CpuidPolicy(host).without("popcnt")
    >>> policy.features()
    ['fpu', 'hypervisor']
    """

    __slots__ = ("_table",)

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

    @classmethod
    def host(cls, kvm: Kvm, *, kernel_apic: bool = True) -> Self:
        """Return all that this host can give, with what KVM leaves to the VMM to say.

        The guest is told that it is one: without that Linux looks for no KVM clock. "The TSC deadline timer feature
        (CPUID leaf 1, ecx[24]) is always returned as false, since the feature depends on KVM_CREATE_IRQCHIP for local
        APIC support" (Documentation/virt/kvm/api.rst, 4.46); x2APIC and KVM_FEATURE_PV_UNHALT depend on it as well and
        are returned as true (9.1). The two bits of leaf 7 that say which x87 features are missing are set, as
        Documentation/virt/kvm/x86/errata.rst recommends.

        Args:
            kvm: whose offer it is.
            kernel_apic: whether the machine's local APICs are KVM's: `VmFd.create_irq_chip` or Cap.SPLIT_IRQCHIP.
        """
        policy = cls(kvm.get_supported_cpuid()).with_("hypervisor")
        table = policy._table
        if extended := table.find(7):
            extended.ebx |= _FDP_EXCPTN_ONLY | _ZERO_FCS_FDS
        if kernel_apic:
            return policy.with_("tsc_deadline") if kvm.check_extension_raw(_CAP_TSC_DEADLINE_TIMER) else policy
        if paravirtual := table.find(_KVM_FEATURES):
            paravirtual.eax &= ~_PV_UNHALT
        return policy.without("x2apic", "tsc_deadline")

    @classmethod
    def minimal(cls, kvm: Kvm) -> Self:
        """Give the least that a 64-bit kernel runs on: the same guest on any host."""
        return cls.host(kvm).template("x86-64-v1")

    def template(self, template: str | Template) -> Self:
        """Keep only the features of a template (`TEMPLATES`, or your own) that the host has too, and take its name."""
        if isinstance(template, str):
            if template not in TEMPLATES:
                raise ValueError(f"no template is called {template!r}: there are {', '.join(TEMPLATES)}")
            template = TEMPLATES[template]
        self.without(*(feature for feature in self.features() if feature not in template.features))
        if template.signature is not None:
            self._table.set(1, eax=template.signature)
        return self.vendor(template.vendor) if template.vendor else self

    def vendor(self, name: str) -> Self:
        """Replace the 12-character vendor string, such as "GenuineIntel" or "AuthenticAMD"."""
        raw = name.encode("ascii")
        if len(raw) != 12:
            raise ValueError(f"a vendor string has 12 characters, not {len(raw)}")
        ebx, edx, ecx = (int.from_bytes(raw[at : at + 4], "little") for at in (0, 4, 8))
        self._table.set(0, ebx=ebx, ecx=ecx, edx=edx)
        if self._table.find(0x80000000):
            # AMD repeats it there and Intel has zeros
            amd = name == "AuthenticAMD"
            self._table.set(0x80000000, ebx=ebx * amd, ecx=ecx * amd, edx=edx * amd)
        return self.drop_leaves({"GenuineIntel": _ONLY_AMD, "AuthenticAMD": _ONLY_INTEL}.get(name, ()))

    def drop_leaves(self, leaves: Iterable[int]) -> Self:
        """Remove whole leaves."""
        gone = set(leaves)
        self._table.retain(lambda entry: entry.function not in gone)
        return self

    def features(self) -> list[str]:
        """Return the names of the features shown now, in alphabetical order."""
        shown = []
        for name, (leaf, index, register, bit) in FEATURES.items():
            entry = self._table.find(leaf, index)
            if entry is not None and getattr(entry, register) >> bit & 1:
                shown.append(name)
        return sorted(shown)

    def table(self, vcpu_id: int = 0, vcpus: int = 1) -> CpuId:
        """Return the table for one vCPU of so many: what the leaves that differ between processors say.

        The guest sees one package of `vcpus` cores with a thread each, and the APIC id is `vcpu_id`. What KVM's table
        says there differs between its versions: "userspace should not rely on it" (Documentation/virt/kvm/api.rst, 9.1,
        "CPU topology").

        Raises:
            ValueError: there is no vCPU of that number among so many.
        """
        return topology.describe(self._table.copy(), vcpu_id, vcpus)

    def _change(self, name: str, shown: bool) -> None:
        if name not in FEATURES:
            raise ValueError(f"no CPUID feature is called {name!r} here; FEATURES lists {len(FEATURES)} names")
        leaf, index, register, bit = FEATURES[name]
        entry = self._table.find(leaf, index) or (self._table.set(leaf, index) if shown else None)
        if entry is not None:
            value = getattr(entry, register)
            setattr(entry, register, value | 1 << bit if shown else value & ~(1 << bit))


__all__ = ["BASELINE", "FEATURES", "TEMPLATES", "CpuidPolicy", "Template"]
