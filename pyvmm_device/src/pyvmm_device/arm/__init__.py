"""ARM's PrimeCell devices: the PL011 serial port and the PL031 clock."""
