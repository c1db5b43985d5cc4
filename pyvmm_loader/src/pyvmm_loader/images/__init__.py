"""What a file is: kernels in every format, firmware, bare code."""
