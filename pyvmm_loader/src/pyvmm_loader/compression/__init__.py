"""What kernels and archives are packed with."""
