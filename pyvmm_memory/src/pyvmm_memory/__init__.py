"""Guest physical memory: regions, safe access, dirty tracking, atomics, IOMMU."""

__version__ = "0.1.0"
